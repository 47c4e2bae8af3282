/** When to ask for a task: arithmetic only, in ms since the start of the wait. */

/** What is expected of a task, from the last ones of its kind. */
export interface Plan {
  /** When to ask first. */
  firstMs: number;
  /** An earlier ask, made when the last ones were over by their first: has the kind become faster? */
  probeMs?: number;
  /** How far apart the asks are while the end is due; undefined before anything is learned. */
  gapMs?: number;
  /** Until when the end is due. */
  dueUntilMs: number;
}

/** Nothing learned yet: a first look after 50 ms, then steps that grow. */
const UNKNOWN: Plan = { firstMs: 50, dueUntilMs: 0 };
/** A task that was found and not started: it may have ended long ago. Or one of many, of which nothing is known. */
export const FOUND: Plan = { firstMs: 0, dueUntilMs: 0 };

const FIRST_STEPS = [15, 25, 40, 60];
const MAX_YOUNG_STEP_MS = 100;
const MAX_STEP_MS = 1_000;
/** Beyond it a task that nothing is known about is old, and being late is cheap. */
const OLD_MS = 30_000;
/** The same where it is known: three times what is usual, but not less than this. */
const OLD_KNOWN_MS = 10_000;
/** However long a kind takes: a task that fails at its start is noticed within this. */
const MAX_SILENCE_MS = 2_000;
/** One more request is worth as much as being this late: a status takes PVE a few ms, a provision is allowed 14 requests. */
const REQUEST_COST_MS = 1.2;
const MIN_GAP_MS = 10;
const KEPT = 20;

/** When to ask after the `asks`-th time, which was at `elapsedMs`. */
export function nextAskMs(plan: Plan, asks: number, elapsedMs: number): number {
  if (elapsedMs < plan.firstMs) {
    const first = asks === 0 && plan.probeMs !== undefined ? plan.probeMs : plan.firstMs;
    return Math.min(Math.max(first, elapsedMs), elapsedMs + MAX_SILENCE_MS);
  }
  if (asks === 0) return elapsedMs;
  return elapsedMs + stepMs(plan, asks, elapsedMs);
}

function stepMs(plan: Plan, asks: number, elapsedMs: number): number {
  const oldMs = plan.gapMs === undefined ? OLD_MS : Math.max(OLD_KNOWN_MS, 3 * plan.dueUntilMs);
  if (elapsedMs > oldMs) return Math.min(MAX_STEP_MS, Math.max(MAX_YOUNG_STEP_MS, (elapsedMs - oldMs) / 30));
  if (plan.gapMs === undefined) return FIRST_STEPS[asks - 1] ?? MAX_YOUNG_STEP_MS;
  const overdueMs = elapsedMs - plan.dueUntilMs;
  return Math.min(MAX_YOUNG_STEP_MS, Math.max(plan.gapMs, overdueMs / 2));
}

/**
 * The same plan where the node has other tasks to be asked about: a request is for several of them then, and each task
 * is asked for less densely, so that more tasks do not cost as many more requests.
 */
export function inCompany(plan: Plan, tasks: number): Plan {
  if (plan.gapMs === undefined || tasks <= 1) return plan;
  const gapMs = Math.min(MAX_YOUNG_STEP_MS, plan.gapMs * Math.sqrt(tasks));
  return { ...plan, gapMs, firstMs: plan.firstMs + (gapMs - plan.gapMs) / 2 };
}

/** How long tasks of each kind took, the last ones only. */
export class Durations {
  readonly #kinds = new Map<string, { samples: number[]; overByFirst: number }>();

  plan(kind: string): Plan {
    const known = this.#kinds.get(kind);
    if (known === undefined || known.samples.length === 0) return UNKNOWN;
    const sorted = known.samples.toSorted((a, b) => a - b);
    const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
    // A few samples say little about the spread.
    const margin = sorted.length < 5 ? at(0.5) / 10 : 0;
    const from = Math.max(0, at(0.1) - margin);
    const until = at(0.9) + margin;
    // n asks, spread over a time in which the end is equally likely anywhere, cost n requests and make us late by
    // spread / 2n: this gap makes the sum of both costs least.
    const best = Math.sqrt(2 * REQUEST_COST_MS * (until - from));
    const gapMs = Math.min(MAX_YOUNG_STEP_MS, Math.max(MIN_GAP_MS, best));
    const firstMs = from + gapMs / 2;
    return {
      firstMs,
      gapMs,
      dueUntilMs: until,
      ...(known.overByFirst >= 2 ? { probeMs: firstMs / 2 } : {}),
    };
  }

  /** The task ran at `afterMs` (0: was never seen running) and was over at `byMs`. */
  learn(kind: string, plan: Plan, afterMs: number, byMs: number): void {
    const known = this.#kinds.get(kind) ?? { samples: [], overByFirst: 0 };
    this.#kinds.set(kind, known);
    if (afterMs === 0 && plan.probeMs !== undefined) {
      // Over even by the early ask: what was learned is no longer true, and asking at its times would never show it.
      this.#kinds.delete(kind);
      return;
    }
    known.overByFirst = afterMs === 0 ? known.overByFirst + 1 : 0;
    const gapMs = Math.min(byMs - afterMs, plan.gapMs ?? Number.POSITIVE_INFINITY);
    // Over by the first ask: it took that long at most. Guessed a whole gap shorter, so that the first ask moves
    // forward until such tasks are few; with half a gap it would only ever move back.
    known.samples.push(afterMs === 0 ? byMs - gapMs : byMs - gapMs / 2);
    if (known.samples.length > KEPT) known.samples.shift();
  }
}
