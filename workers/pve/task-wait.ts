import { FleetError } from "../../shared/errors.ts";
import type { Plan } from "./task-schedule.ts";
import type { Upid } from "./upid.ts";

/** A task that is waited for, by one or several. Times are the watcher's clock's. */
export interface Wait {
  readonly upid: Upid;
  readonly kind: string | undefined;
  readonly plan: Plan;
  readonly startedAt: number;
  readonly waiters: Set<{ resolve(end: { exitstatus: string }): void; reject(reason: unknown): void }>;
  /** How often it was seen running. */
  asks: number;
  /** A request by name is under way. */
  asking: boolean;
  nextAskAt: number;
  /** From when on the list is not to be believed that it runs. */
  suspectAt: number;
  /** Was not in the last list. */
  unlisted: boolean;
  /** Last seen running so long after the start; 0: never. */
  ranMs: number;
  /** Was one of many: how long it took says nothing about one alone. */
  crowded: boolean;
}

/**
 * The list is what the daemons wrote down: a task whose pvedaemon worker was recycled meanwhile stays in it as running
 * until another one begins or ends (RESTEnvironment::active_workers), while its own status looks at the process.
 */
const SUSPECT_MS = 10_000;

export function createWait(upid: Upid, kind: string | undefined, plan: Plan, now: number): Wait {
  return {
    upid,
    kind,
    plan,
    startedAt: now,
    waiters: new Set(),
    asks: 0,
    asking: false,
    nextAskAt: now,
    unlisted: false,
    suspectAt: now + Math.max(SUSPECT_MS, 3 * plan.dueUntilMs),
    ranMs: 0,
    crowded: false,
  };
}

/** One list is for all that are due within this. */
const SHARE_MS = 100;

/** Among few: whom to ask for now, each by name or with one list for several. Pure. */
export function dueOf(waits: readonly Wait[], now: number): { byName: Wait[]; listed: Wait[] } {
  const quiet = waits.filter(({ asking }) => !asking);
  const due = quiet.filter(({ nextAskAt }) => nextAskAt <= now);
  const listable = quiet.filter((wait) => !wait.unlisted && wait.suspectAt > now);
  const soon = listable.filter(({ nextAskAt }) => nextAskAt <= now + SHARE_MS);
  if (soon.length < 2 || !due.some((wait) => listable.includes(wait))) return { byName: due, listed: [] };
  return { byName: due.filter((wait) => !listable.includes(wait)), listed: listable };
}

/** How often the list is checked on among many (see SUSPECT_MS): it costs one tick in fifty. */
const SUSPECT_EVERY_MS = 5_000;

/**
 * Among many: who is asked for by name in place of a list, if any. One that the list leaves out at most every other tick,
 * a suspect now and then. `sinceMs`: since the last time. Pure.
 */
export function pickByName(
  waits: readonly Wait[],
  { now, sinceMs, tickMs }: { now: number; sinceMs: number; tickMs: number },
): Wait | undefined {
  if (sinceMs < 1.5 * tickMs) return undefined;
  const due = waits.filter((wait) => !wait.asking && (wait.unlisted || wait.suspectAt <= now));
  const unlisted = due.find((wait) => wait.unlisted);
  return unlisted ?? (sinceMs < SUSPECT_EVERY_MS ? undefined : due.sort((a, b) => a.suspectAt - b.suspectAt)[0]);
}

/** Says nothing about the task, whatever it was that kept PVE from answering. */
export function givenUp(cause: FleetError, upid: Upid): FleetError {
  const text = `PVE could not be asked about a task any more: ${cause.message}`;
  return new FleetError("node_unreachable", text, { cause, facts: { ...cause.facts, upid } });
}
