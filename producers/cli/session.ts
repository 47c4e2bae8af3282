/** What every command works with, and how its end becomes output and exit code. */
import { FleetError } from "../../shared/errors.ts";
import { createFleetFromEnv, type Fleet } from "../index.ts";
import { EXIT, Interrupted, toExitCode } from "./exit-codes.ts";
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
  /** The exit code so far. */
  code: number;
}

export function createCli(base: Pick<Cli, "terminal" | "env" | "exit">): Cli {
  const cli: Cli = {
    ...base,
    code: EXIT.ok,
    async run({ json = false }, work) {
      try {
        cli.code = (await runSession(cli, json, work)) ?? EXIT.ok;
      } catch (error) {
        cli.code = toExitCode(error);
        cli.terminal.err(formatError(nameRedis(error, cli.env), json));
      }
    },
  };
  return cli;
}

async function runSession(
  { terminal, env, exit }: Cli,
  json: boolean,
  work: (session: Session) => Promise<number | undefined>,
): Promise<number | undefined> {
  await using fleet = createFleetFromEnv(env);
  using interrupt = listenForInterrupt(exit);
  const { signal } = interrupt;
  const operations = new Operations(fleet, terminal, { interrupt: signal, showProgress: !json });
  // Where nothing was begun there is nothing to cancel: a request that hangs ends with its client.
  signal.addEventListener("abort", () => void (operations.any || fleet.close()), { once: true });
  const print = (value: unknown, text: string) => terminal.out(json ? `${JSON.stringify(value)}\n` : text);
  try {
    const code = await work({ fleet, operations, terminal, json, interrupt: signal, print });
    return signal.aborted ? EXIT.interrupted : code; // whatever had to be said was said
  } catch (error) {
    throw signal.aborted && !(error instanceof Interrupted) ? signal.reason : error;
  }
}

/** Which one does not answer, without what may be secret. */
function nameRedis(error: unknown, { REDIS_URL: url = "" }: Cli["env"]): unknown {
  if (!(error instanceof FleetError) || error.code !== "redis_unavailable") return error;
  const shown = url.replace(/\/\/[^/]*@/, "//").replace(/\?.*$/s, "");
  return new FleetError(error.code, `${error.text}; REDIS_URL is ${shown}`, { cause: error, facts: error.facts });
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
