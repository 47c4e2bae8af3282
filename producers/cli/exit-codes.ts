import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  timeout: 124,
  interrupted: 130,
  killed: 137,
  brokenPipe: 141,
} as const;

export const EXIT_HELP = `Exit codes:
  0    all went well
  1    it failed; the reason is on stderr
  2    wrong usage, bad input or missing configuration; nothing was begun
  124  time ran out
  130  ended by Ctrl-C
  exec ends with the exit code of its command, 137 where a signal ended it.`;

/** Thrown where the user ended it; its operations are dealt with by then. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
}

const USAGE: ReadonlySet<FleetErrorCode> = new Set(["invalid_input", "not_configured", "idempotency_conflict"]);

export function toExitCode(error: unknown): number {
  if (error instanceof Interrupted) return EXIT.interrupted;
  if (!(error instanceof FleetError)) return EXIT.failed;
  if (error.code === "timeout") return EXIT.timeout;
  return USAGE.has(error.code) ? EXIT.usage : EXIT.failed;
}
