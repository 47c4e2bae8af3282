/** What every command works with, and how its end becomes output and exit code. */
import type { Command } from "commander";
import { FleetError } from "../../shared/errors.ts";
import { createFleetFromEnv, type Fleet } from "../index.ts";
import { MAY_BE_ACCEPTED } from "../link.ts";
import { EXIT, Interrupted, toExitCode } from "./exit-codes.ts";
import { toFlagWords } from "./flag-words.ts";
import { listenForInterrupt } from "./interrupt.ts";
import { Operations } from "./operations.ts";
import { type Terminal, toPrintable } from "./terminal.ts";

export interface GlobalOptions {
  json?: boolean;
}

export interface Session {
  readonly fleet: Fleet;
  readonly operations: Operations;
  readonly terminal: Terminal;
  readonly json: boolean;
  /** Aborts when the user wants to leave. */
  readonly interrupt: AbortSignal;
  /** The error in the words of the command line. */
  reword<E>(error: E): E | FleetError;
  /** For machines the value as JSON, for people the text. */
  print(value: unknown, text: string): void;
}

export interface Cli {
  readonly terminal: Terminal;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Ends the process now. */
  exit(code: number): void;
  /** Runs a command with a client that is closed after it. `work` may return an exit code. */
  run(options: GlobalOptions, work: (session: Session) => Promise<number | undefined>): Promise<void>;
  /** Tells of an error, which becomes the exit code. */
  fail(error: unknown, options: GlobalOptions): void;
  /** The exit code so far. */
  code: number;
  /** The one that runs. */
  command?: Command;
}

export function createCli(base: Pick<Cli, "terminal" | "env" | "exit">): Cli {
  const cli: Cli = {
    ...base,
    code: EXIT.ok,
    async run({ json = false }, work) {
      try {
        cli.code = (await runSession(cli, json, work)) ?? EXIT.ok;
      } catch (error) {
        cli.fail(error, { json });
      }
    },
    fail(error, { json = false }) {
      cli.code = toExitCode(error);
      cli.terminal.err(formatError(toOwnWords(error, cli), json));
    },
  };
  return cli;
}

async function runSession(
  cli: Cli,
  json: boolean,
  work: (session: Session) => Promise<number | undefined>,
): Promise<number | undefined> {
  const { terminal, env, exit } = cli;
  await using fleet = createFleetFromEnv(env);
  using interrupt = listenForInterrupt(exit);
  const { signal } = interrupt;
  const operations = new Operations(fleet, terminal, { interrupt: signal, showProgress: !json });
  const leave = () => {
    if (terminal.watched) terminal.err("\n"); // what is said now stands below the ^C and a line that was drawn
    // Where nothing was begun there is nothing to cancel: a request that hangs ends with its client.
    if (!operations.any) void fleet.close();
  };
  signal.addEventListener("abort", leave, { once: true });
  const reword: Session["reword"] = (error) => toOwnWords(error, cli);
  const print = (value: unknown, text: string) => terminal.out(json ? `${JSON.stringify(value)}\n` : text);
  try {
    const code = await work({ fleet, operations, terminal, json, interrupt: signal, reword, print });
    return signal.aborted ? EXIT.interrupted : code; // whatever had to be said was said
  } catch (error) {
    throw signal.aborted && !(error instanceof Interrupted) ? signal.reason : error;
  }
}

/** As whoever typed this command line knows things. */
const toOwnWords = <E>(error: E, cli: Cli): E | FleetError => toFlagWords(nameRedis(error, cli), cli.command);

/** Which one does not answer, without what may be secret; of a command that only looks nothing is accepted. */
function nameRedis<E>(error: E, { env: { REDIS_URL: url = "" }, command }: Cli): E | FleetError {
  if (!(error instanceof FleetError) || error.code !== "redis_unavailable") return error;
  const shown = url.replace(/\/\/[^/]*@/, "//").replace(/\?.*$/s, "");
  const asks = command?.options.some((option) => option.attributeName() === "idempotencyKey");
  const text = asks ? error.text : error.text.replace(MAY_BE_ACCEPTED, "");
  return new FleetError(error.code, `${text}; REDIS_URL is ${shown}`, { cause: error, facts: error.facts });
}

/** One line, or one JSON value. */
export function formatError(error: unknown, json: boolean): string {
  const { code, text, facts } = describeError(error);
  if (json) return `${JSON.stringify({ error: { code, message: text, facts } })}\n`;
  return `fleet: ${code}: ${toPrintable(text)}\n`;
}

export function describeError(error: unknown) {
  if (error instanceof FleetError) return { code: error.code, text: error.text, facts: error.facts };
  if (error instanceof Interrupted) return { code: "canceled", text: error.message, facts: {} };
  const text = error instanceof Error ? `${error.constructor.name}: ${error.message}` : String(error);
  return { code: "internal", text, facts: {} };
}
