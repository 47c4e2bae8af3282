/** When a node's circuit breaker opens, is probed and closes: pure. */
import type { Breaker } from "../../shared/state/nodes.ts";

/** So many transport failures in a row, over all workers, each at most so long after the first. */
const FAILURES = 3;
const WINDOW_MS = 60_000;
/** The first pause and the longest. A probe is one read over the whole fleet, so a node that is back is soon found. */
const PAUSE = { firstMs: 2_000, lastMs: 30_000 };
/** A probe that has not reported for this long has died with its worker. */
export const PROBE_MS = 10_000;

export type BreakerEvent =
  /** A request to the node ended without the node's answer. */
  | { type: "failed" }
  /** The node's daemon has answered. */
  | { type: "answered" }
  /** Somebody wants to probe. */
  | { type: "probe"; probe: string }
  | { type: "probed"; probe: string; alive: boolean };

/** The state after an event; the very same object when nothing changes. `null` is closed and clean. */
export function nextBreaker(before: Breaker | null, event: BreakerEvent, now: number): Breaker | null {
  switch (event.type) {
    case "failed":
      return afterFailure(before, now);
    case "answered":
      // While it is open the probe alone decides: other answers may be older than the trouble.
      return before?.state === "closed" ? null : before;
    case "probe": {
      if (before === null || before.state === "closed" || now < before.until) return before;
      const { since, times } = before;
      return { state: "half_open", since, times, probe: event.probe, until: now + PROBE_MS };
    }
    case "probed": {
      if (before?.state !== "half_open" || before.probe !== event.probe) return before;
      return event.alive ? null : opened(before.since, before.times + 1, now);
    }
  }
}

function afterFailure(before: Breaker | null, now: number): Breaker | null {
  if (before !== null && before.state !== "closed") return before;
  const inARow = before !== null && now - before.since <= WINDOW_MS;
  const failures = inARow ? before.failures + 1 : 1;
  const since = inARow ? before.since : now;
  return failures >= FAILURES ? opened(since, 1, now) : { state: "closed", failures, since };
}

function opened(since: number, times: number, now: number): Breaker {
  const pauseMs = Math.min(PAUSE.lastMs, PAUSE.firstMs * 2 ** Math.min(times - 1, 20));
  return { state: "open", since, times, until: now + pauseMs };
}
