import type { TaskEntry } from "./replies.ts";

/** What a list of tasks, running and archived, says about each: undefined while it runs. */
export function readTaskList(entries: readonly TaskEntry[]): {
  exits: ReadonlyMap<string, string | undefined>;
  running: number;
} {
  const exits = new Map<string, string | undefined>();
  let running = 0;
  for (const { upid, status = "RUNNING" } of entries) {
    if (status !== "RUNNING") {
      exits.set(upid, status);
    } else {
      running++;
      // PVE reads two files: a task that ends in between is in both.
      if (!exits.has(upid)) exits.set(upid, undefined);
    }
  }
  return { exits, running };
}
