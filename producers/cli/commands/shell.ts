/** A terminal in a sandbox, on the terminal here. */
import { execFileSync } from "node:child_process";
import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { ShellHandle } from "../../index.ts";
import { EXIT, Interrupted } from "../exit-codes.ts";
import { quoteCommand } from "../quote-command.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { createEscape } from "../shell-escape.ts";
import type { Terminal } from "../terminal.ts";
import { createTerminalModes } from "../terminal-modes.ts";
import { afterDashes, show } from "./exec.ts";
import { onQuotaOption, withoutUndefined } from "./shared-options.ts";

interface Options extends GlobalOptions {
  user?: string;
  onQuota?: "refuse" | "wait";
}

const HELP = `
It needs SSH from the workers to the nodes (FLEET_SSH_KEY there), and here FLEET_SECRET_KEY. Keys go to the sandbox as they
are pressed, Ctrl-C too; Enter ~ . at the beginning of a line hangs up, and so does whatever ends this program. For scripts
and pipes there is fleet exec.

Examples:
  fleet shell 20001
  fleet shell sbx_... --user dev -- htop`;

export function addShell(program: Command, cli: Cli): void {
  const command = program
    .command("shell")
    .summary("open an interactive terminal in a sandbox")
    .description("Open an interactive terminal in a sandbox; ends with the exit code of what ran there.")
    .argument("<sandbox>", "where")
    .argument("[command...]", "what, after --; a login shell when absent")
    .option("-u, --user <name>", "who it runs as; root when absent")
    .addOption(onQuotaOption("refuse"))
    .addHelpText("after", HELP)
    .exitOverride(afterDashes)
    .action(async (sandbox: string, words: string[]) => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, (session) => openShell({ ...session, cli }, sandbox, words, options));
    });
}

async function openShell(
  { cli, ...session }: Session & { cli: Cli },
  sandbox: string,
  words: readonly string[],
  { user, onQuota }: Options,
): Promise<number> {
  if (!process.stdin.isTTY || !process.stdout.isTTY) {
    const text =
      "a shell needs a terminal as input and output; for scripts and pipes use: fleet exec SANDBOX -- COMMAND";
    throw new FleetError("invalid_input", text, { facts: { fields: ["stdin"] } });
  }
  const { fleet, operations } = session;
  const sandboxId = await resolveSandbox(sandbox, fleet.sandboxes);
  const command = words.length > 0 ? quoteCommand(words) : undefined;
  const term = cli.env["TERM"] || undefined;
  const given = withoutUndefined({ command, user, term });
  const handle = await operations.begin(() => fleet.shell({ sandboxId, ...sizeHere(), ...given }, { onQuota }));
  return attach(session, handle, cli);
}

const sizeHere = () => ({ cols: process.stdout.columns || 80, rows: process.stdout.rows || 24 });

const CTRL_C = 3;
/** Who hangs up waits no longer than this for the shell's end. */
const LEAVING_MS = 3_000;

/** This terminal is the shell's until it ends, and then what it was before, however that comes about. */
async function attach(session: Session, handle: ShellHandle, cli: Cli): Promise<number> {
  const { operations, terminal } = session;
  const { stdin, stdout } = process;
  const stop = new AbortController();
  const findEscape = createEscape();
  let begun = false;
  let left = false;
  const ignore = () => {}; // the result tells
  const onData = (bytes: Buffer) => {
    // Nothing runs there yet that could be interrupted.
    if (!begun && bytes.includes(CTRL_C)) {
      left = true;
      return void handle.cancel().catch(ignore);
    }
    const { pass, leave } = findEscape(bytes);
    if (pass.length > 0) handle.write(pass).catch(ignore);
    if (leave) onEnd();
  };
  let leaving: NodeJS.Timeout | undefined;
  const onEnd = () => {
    handle.close().catch(ignore);
    // While Redis is away nobody hears of it; then the worker misses our signs of life.
    leaving ??= setTimeout(() => cli.exit(EXIT.failed), LEAVING_MS);
  };
  const onResize = () => {
    const { cols, rows } = sizeHere();
    handle.resize(cols, rows).catch(ignore);
  };
  const modes = createTerminalModes();
  const restore = () => {
    terminal.out(modes.undo());
    terminal.setRaw(false);
    stdin.setRawMode(false);
  };
  process.on("exit", restore);
  stdin.setRawMode(true);
  passLineFeeds(terminal);
  stdin.on("data", onData).on("end", onEnd).resume();
  stdout.on("resize", onResize);
  async function* noted() {
    for await (const chunk of handle.output({ signal: stop.signal })) {
      begun = true;
      if (chunk.stream === "stdout") modes.see(chunk.text);
      yield chunk;
    }
  }
  const shown = show(terminal, noted());
  shown.catch(ignore);
  try {
    const { exitCode, ended } = await operations.quietResult(handle);
    await shown;
    restore();
    if (ended !== "exit") terminal.err("\nfleet: the shell was hung up\n");
    return ended === "vanished" ? EXIT.failed : exitCode;
  } catch (error) {
    throw left ? new Interrupted("canceled the operation") : error;
  } finally {
    clearTimeout(leaving);
    stop.abort();
    stdin.off("data", onData).off("end", onEnd).pause();
    stdout.off("resize", onResize);
    restore();
    process.off("exit", restore);
  }
}

/** Node's raw mode turns each line feed into two characters (libuv sets ONLCR), and what runs there moves the cursor by them. */
function passLineFeeds(terminal: Terminal): void {
  try {
    execFileSync("stty", ["-opost"], { stdio: ["inherit", "ignore", "ignore"] });
    terminal.setRaw(true);
  } catch {
    // No stty: it stays as Node makes it.
  }
}
