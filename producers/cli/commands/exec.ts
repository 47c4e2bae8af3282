import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { JobOutput } from "../../index.ts";
import { collectEnv, parseDurationMs } from "../parse-values.ts";
import { quoteCommand } from "../quote-command.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { onQuotaOption, withoutUndefined } from "./shared-options.ts";

interface Options extends GlobalOptions {
  timeout?: number;
  env?: Record<string, string>;
  cwd?: string;
  idempotent?: boolean;
  idempotencyKey?: string;
  onQuota?: "refuse" | "wait";
}

const EXAMPLES = `
SANDBOX is a sandbox id, or its VMID or hostname. One COMMAND word is shell text for /bin/bash -c; several are one
command with its arguments, each passed on as it is. Output comes on the same streams; the exit code is the command's.

Examples:
  fleet exec sbx_... -- ls -la /workspace
  fleet exec 20001 'cd /workspace && npm test | tail -5'
  fleet exec cmux-20001 --timeout 10m --env CI=1 --env TOKEN -- make test`;

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
    .option("--idempotent", "it may run again when its worker dies in the middle")
    .option("--idempotency-key <key>", "the same key with the same input never runs twice")
    .addOption(onQuotaOption())
    .addHelpText("after", EXAMPLES)
    .action(async (sandbox: string, words: string[]) => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, (session) => exec(session, sandbox, words, options));
    });
}

async function exec(session: Session, sandbox: string, words: readonly string[], options: Options): Promise<number> {
  const text = quoteCommand(words);
  if (text === "") {
    throw new FleetError("invalid_input", "command: is missing; give it after --, as in: fleet exec SANDBOX -- ls", {
      facts: { fields: ["command"] },
    });
  }
  const { timeout: timeoutMs, env, cwd, idempotent, idempotencyKey, onQuota } = options;
  const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
  const input = { sandboxId, command: text, ...withoutUndefined({ timeoutMs, env, cwd, idempotent }) };
  const handle = await session.operations.begin(() => session.fleet.exec(input, { idempotencyKey, onQuota }));
  const result = await session.operations.result(handle);
  if (session.json) session.print(result, "");
  else show(session, result);
  return result.exitCode;
}

function show({ terminal }: Session, result: JobOutput<"exec">): void {
  terminal.out(result.stdout);
  terminal.err(result.stderr);
  if (result.truncated) {
    terminal.err(`fleet: output cut; stdout had ${result.stdoutBytes} bytes, stderr ${result.stderrBytes}\n`);
  }
}
