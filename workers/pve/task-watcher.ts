import type { PveApi } from "./api.ts";
import type { Upid } from "./upid.ts";

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
  close(): Promise<void>;
}

export interface TaskWatcherOptions {
  /** How long a node may stay unreachable before its waits fail with that; 60 s by default. */
  giveUpMs?: number;
}

export function createTaskWatcher(api: Pick<PveApi, "tasks">, options: TaskWatcherOptions = {}): TaskWatcher {
  throw new Error(`not there yet: ${typeof api} ${Object.keys(options).join()}`);
}
