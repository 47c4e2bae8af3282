import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { spanned, untraced } from "../../shared/trace.ts";
import type { PveApi, TasksApi } from "./api.ts";
import { reasonIn, saysNothing, taskError } from "./errors.ts";
import { NodeTasks, type WatcherClock } from "./node-tasks.ts";
import { Durations } from "./task-schedule.ts";
import { parseUpid, type Upid } from "./upid.ts";

export type { WatcherClock } from "./node-tasks.ts";

export interface TaskWait {
  signal: AbortSignal;
  /**
   * What the task does, such as "linked_clone": how long tasks of one kind take is learned.
   * Left out for a task that was found rather than started: asked at once, nothing is learned from it.
   */
  kind?: string;
}

/** Waits for PVE tasks: one loop a node, for all waits of the process. */
export interface TaskWatcher extends AsyncDisposable {
  /**
   * Resolves when the task ends well; "WARNINGS: n" is a success to PVE. Throws the task's error as FleetError,
   * `task_lost` when PVE does not know it any more, the signal's reason when aborted.
   */
  wait(upid: Upid, options: TaskWait): Promise<{ exitstatus: string }>;
  /** Waits that are left throw `shutting_down`. */
  close(): Promise<void>;
}

export interface TaskWatcherOptions {
  /** How long a node may stay unreachable before its waits fail with that; 60 s by default. */
  giveUpMs?: number;
  /** Up to so many tasks of a node are asked for when they are due, more by one list a tick; 8 by default. */
  few?: number;
  clock?: WatcherClock;
  /** Called with each end that was noticed: for how many ms it may have gone unnoticed. */
  onEnd?: (lagMs: number) => void;
}

/** A little more than a tenth of a second: what jitter pushes together is still no more than ten a second. */
const TICK_MS = 102;

const CLOCK: WatcherClock = {
  now: () => performance.now(),
  after: (ms, run) => {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  },
};

const EXPLAIN_MS = 5_000;

/** Some tasks tell in their log alone why they failed. */
async function explained(tasks: TasksApi, upid: Upid, error: unknown, signal: AbortSignal): Promise<unknown> {
  if (!(error instanceof FleetError)) return error;
  // It exits without a status where it could not have its node's lock (PVE::API2::VZDump).
  const exits = error.code === "task_lost" && parseUpid(upid).type === "vzdump";
  if (!exits && (error.code !== "task_failed" || !saysNothing(error.text))) return error;
  try {
    const reason = reasonIn(await tasks.log(upid, { limit: 0 }, { signal, deadlineMs: EXPLAIN_MS }));
    return reason === undefined ? error : taskError(exits ? reason : `${error.text}: ${reason}`, upid);
  } catch {
    return error; // which is true all the same
  }
}

export function createTaskWatcher(api: Pick<PveApi, "tasks">, options: TaskWatcherOptions = {}): TaskWatcher {
  const { giveUpMs = 60_000, few = 8, clock = CLOCK, onEnd = () => {} } = options;
  const nodes = new Map<NodeName, NodeTasks>();
  // Of all nodes together: they differ less than kinds do, and a node's first task of a kind is known at once.
  const durations = new Durations();
  let closed = false;

  const nodeTasks = (node: NodeName): NodeTasks => {
    const known = nodes.get(node);
    if (known !== undefined) return known;
    const onIdle = () => nodes.delete(node);
    const rules = { durations, clock, few, giveUpMs, tickMs: TICK_MS };
    const made = new NodeTasks(node, { ...rules, tasks: api.tasks, onIdle, onEnd });
    nodes.set(node, made);
    return made;
  };
  const close = async (): Promise<void> => {
    closed = true;
    const reason = new FleetError("shutting_down", "the task watcher was closed");
    for (const node of [...nodes.values()]) node.close(reason);
  };

  return {
    wait: async (upid, { kind, signal }) => {
      signal.throwIfAborted();
      if (closed) throw new FleetError("shutting_down", "the task watcher is closed");
      const { node, type } = parseUpid(upid);
      return await spanned(
        `task ${type}`,
        { attributes: { "pve.upid": upid, "fleet.node": node } },
        () =>
          untraced(() =>
            nodeTasks(node)
              .wait(upid, kind, signal)
              .catch(async (error: unknown) => {
                throw await explained(api.tasks, upid, error, signal);
              }),
          ), // what it asks is for all who wait
      );
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}
