import { FleetError } from "../../shared/errors.ts";
import { nextAskMs, type Plan } from "./task-schedule.ts";
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
    nextAskAt: now + nextAskMs(plan, 0, 0),
    unlisted: false,
    suspectAt: now + Math.max(SUSPECT_MS, 3 * plan.dueUntilMs),
    ranMs: 0,
    crowded: false,
  };
}

/** Says nothing about the task, whatever it was that kept PVE from answering. */
export function givenUp(cause: FleetError, upid: Upid): FleetError {
  const text = `PVE could not be asked about a task any more: ${cause.message}`;
  return new FleetError("node_unreachable", text, { cause, facts: { ...cause.facts, upid } });
}
