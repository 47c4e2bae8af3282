import { type Command, CommanderError } from "commander";
import { FleetError, unreachable } from "../../../shared/errors.ts";
import type { ExecHandle, OutputChunk } from "../../index.ts";
import { EXIT } from "../exit-codes.ts";
import { collectEnv, parseDurationMs, parseNumber } from "../parse-values.ts";
import { quoteCommand } from "../quote-command.ts";
import { readStdin } from "../read-stdin.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import type { Terminal } from "../terminal.ts";
import { onQuotaOption, withoutUndefined } from "./shared-options.ts";

interface Options extends GlobalOptions {
  timeout?: number;
  env?: Record<string, string>;
  cwd?: string;
  user?: string;
  /** Undefined: where something is piped in. */
  stdin?: boolean;
  outputLimit?: number;
  idempotent?: boolean;
  idempotencyKey?: string;
  onQuota?: "refuse" | "wait";
}

const EXAMPLES = `
SANDBOX is a sandbox id, or its VMID or hostname. One COMMAND word is shell text for /bin/bash -c; several are one
command with its arguments, each passed on as it is. Input, output and exit code are the command's, as if it ran here;
Ctrl-C ends it there, too. Where some of its output is missing that is said, and the exit code is 1 in place of 0.
Output is text: what is no UTF-8 is replaced, and a line has at most 1 MiB. fleet cp copies files as they are.

Examples:
  fleet exec sbx_... -- ls -la /workspace
  fleet exec 20001 'cd /workspace && npm test | tail -5'
  tar c src | fleet exec 20001 --user dev --cwd /workspace -- tar x
  fleet exec cmux-20001 --timeout 10m --env CI=1 --env TOKEN -- make test`;

/** What looks like an option of ours is mostly the command's own. */
export function afterDashes(error: CommanderError): never {
  if (error.code !== "commander.unknownOption") throw error;
  const text = `${error.message}; options of the command itself come after --, as in: SANDBOX -- ls -la`;
  throw new CommanderError(error.exitCode, error.code, text);
}

export function addExec(program: Command, cli: Cli): void {
  const command = program
    .command("exec")
    .summary("run a command in a sandbox")
    .description("Run a command in a sandbox; waits for one that is not up yet.")
    .argument("<sandbox>", "where")
    .argument("[command...]", "what, after --")
    .option("--timeout <duration>", "of the command, such as 90s or 10m; then it ends with 124 (5m)", parseDurationMs)
    .option("-e, --env <key[=value]>", "variable, sealed; without a value it is taken from here", collectEnv(cli.env))
    .option("--cwd <path>", "where it runs")
    .option("-u, --user <name>", "who it runs as; root when absent")
    .option("-i, --stdin", "it reads what is typed here, up to Ctrl-D; what is piped in (1 MiB) it reads anyway")
    .option("-n, --no-stdin", "it reads nothing")
    .option("--output-limit <bytes>", "of each stream, in the result of --json (262144)", parseNumber)
    .option("--idempotent", "it may run again when its worker dies in the middle")
    .option("--idempotency-key <key>", "the same key with the same input never runs twice")
    .addOption(onQuotaOption("refuse"))
    .addHelpText("after", EXAMPLES)
    .exitOverride(afterDashes)
    .action(async (sandbox: string, words: string[]) => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, (session) => exec({ ...session, cli }, sandbox, words, options));
    });
}

async function exec(
  { cli, ...session }: Session & { cli: Cli },
  sandbox: string,
  words: readonly string[],
  options: Options,
): Promise<number> {
  const text = quoteCommand(words);
  if (text === "") {
    throw new FleetError("invalid_input", "command: is missing; give it after --, as in: fleet exec SANDBOX -- ls", {
      facts: { fields: ["command"] },
    });
  }
  const { timeout: timeoutMs, outputLimit: outputLimitBytes, env, cwd, user, idempotent } = options;
  const { fleet, operations, terminal, json } = session;
  const [sandboxId, stdin] = await Promise.all([
    resolveSandbox(sandbox, fleet.sandboxes),
    (options.stdin ?? !process.stdin.isTTY) ? readStdin(terminal, session.interrupt) : undefined,
  ]);
  const given = withoutUndefined({ exact: true, timeoutMs, outputLimitBytes, env, cwd, user, idempotent, stdin });
  const { idempotencyKey, onQuota } = options;
  const handle = await operations.begin(() =>
    fleet.exec({ sandboxId, command: text, ...given }, { idempotencyKey, onQuota }),
  );
  if (json) {
    const result = await operations.result(handle);
    session.print(result, "");
    return toExit(terminal, result.exitCode);
  }
  // As a command here that writes to nobody any more: it ends.
  terminal.whenBroken(() => {
    const leave = () => cli.exit(EXIT.brokenPipe);
    setTimeout(leave, LEAVING_MS);
    handle.cancel().then(leave, leave);
  });
  return stream(session, handle);
}

const LEAVING_MS = 2_000;

/** The daemon tells of a command that a signal ended, not of which one: as if it were SIGKILL, mostly for want of memory. */
function toExit(terminal: Terminal, exitCode: number): number {
  if (exitCode >= 0) return exitCode;
  terminal.err("fleet: a signal ended the command\n");
  return EXIT.killed;
}

/** Shows the output as it comes; what of it is missing when the result is told has been said. */
async function stream({ operations, terminal }: Session, handle: ExecHandle): Promise<number> {
  const stop = new AbortController();
  const shown = show(terminal, handle.output({ signal: stop.signal })).catch((error: unknown) => {
    if (!stop.signal.aborted) throw error;
    return false;
  });
  shown.catch(() => {}); // the result tells it first
  try {
    const { exitCode } = await operations.quietResult(handle);
    const isWhole = await shown;
    return toExit(terminal, exitCode === 0 && isWhole === false ? EXIT.failed : exitCode);
  } catch (error) {
    const patience = setTimeout(() => stop.abort(), LEAVING_MS);
    await shown.catch(() => {});
    clearTimeout(patience);
    throw error;
  }
}

/** Whether all of it could be shown. */
export async function show(terminal: Terminal, chunks: AsyncIterable<OutputChunk>): Promise<boolean> {
  let isWhole = true;
  for await (const chunk of chunks) {
    switch (chunk.stream) {
      case "stdout":
        terminal.out(chunk.text);
        await terminal.room();
        break;
      case "stderr":
        terminal.err(chunk.text);
        break;
      case "gap":
        isWhole = false;
        terminal.err(`fleet: ${chunk.bytes} bytes of output are missing here: it came too fast\n`);
        break;
      case "restarted":
        terminal.err("fleet: the command was begun again, since its worker died\n");
        break;
      default:
        throw unreachable(chunk);
    }
  }
  return isWhole;
}
