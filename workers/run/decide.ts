/** What follows from a failed run: pure. */
import type { FleetError } from "../../shared/errors.ts";
import { retryDelayMs } from "../../shared/errors.ts";

export type Decision =
  /** Undo what was made and end. */
  | { next: "end"; status: "failed" | "canceled" }
  /** Run again after this long. */
  | { next: "retry"; delayMs: number }
  /** Give it back to placement. */
  | { next: "replace"; delayMs: number }
  /** The run was told to stop; another takes the job over as it stands. */
  | { next: "yield" };

export interface Attempt {
  /** Failed runs before this one. */
  attempts: number;
  /** Of the job kind. */
  attemptsAllowed: number;
  /** In [0, 1). */
  random: number;
  /** Whether another node may do. */
  movable: boolean;
}

/** An error and its attempt → what to do. */
export function decide(error: FleetError, { attempts, attemptsAllowed, random, movable }: Attempt): Decision {
  if (error.code === "lock_lost" || error.code === "shutting_down") return { next: "yield" };
  if (error.code === "canceled") return { next: "end", status: "canceled" };
  const attempt = attempts + 1;
  const replaces = error.policy === "replace" && movable;
  const curveMs = retryDelayMs(error.policy === "replace" && !movable ? "transport" : error.policy, attempt, random);
  if (curveMs === null || attempt >= attemptsAllowed) return { next: "end", status: "failed" };
  // Nothing gets through to a node before its breaker lets a probe go: an attempt before that would be wasted.
  const { retryAfterMs } = error.facts;
  const delayMs = Math.max(curveMs, typeof retryAfterMs === "number" ? retryAfterMs : 0);
  return replaces ? { next: "replace", delayMs } : { next: "retry", delayMs };
}
