/** What ran at the same time, from the stand-in's own list of tasks. */
import type { TaskEntry } from "../../pve/views.ts";

/** Tasks that load a node: what the fleet's node slots are for. */
export const isHeavy = ({ type }: TaskEntry): boolean =>
  /^vz(clone|create|start|stop|shutdown|reboot|destroy)$/.test(type);

/** The most that ran at once. A task that begins when another ends does not overlap it. */
export function mostAtOnce(tasks: readonly TaskEntry[]): number {
  const edges = tasks.flatMap(({ startedAt, endedAt = Number.POSITIVE_INFINITY }) => [
    { at: startedAt, change: 1 },
    { at: endedAt, change: -1 },
  ]);
  edges.sort((a, b) => a.at - b.at || a.change - b.change);
  let now = 0;
  let most = 0;
  for (const { change } of edges) {
    now += change;
    most = Math.max(most, now);
  }
  return most;
}

/** Tasks by a key of theirs. */
export function groupBy(tasks: readonly TaskEntry[], key: (task: TaskEntry) => string): Map<string, TaskEntry[]> {
  const groups = new Map<string, TaskEntry[]>();
  for (const task of tasks) groups.set(key(task), [...(groups.get(key(task)) ?? []), task]);
  return groups;
}

/** The container that a task changes. */
export const subjectOf = ({ id, target }: TaskEntry): string => String(target ?? id);
