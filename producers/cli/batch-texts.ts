/** Batches as short texts for people. Pure. */
import type { BatchCounts, BatchView } from "../index.ts";
import { formatDuration, formatTime, NONE } from "./describe.ts";

/** What of the past tells how fast it goes now. */
const WINDOW_MS = 20_000;
const BAR_WIDTH = { most: 24, least: 8 };

const endedOf = ({ succeeded, failed, canceled }: BatchCounts): number => succeeded + failed + canceled;

export interface Pace {
  /** Takes note of how many have ended at a time in ms; returns how many end in a second, 0 where that can't be said yet. */
  at(now: number, counts: BatchCounts): number;
}

export function createPace(): Pace {
  const seen: { now: number; ended: number }[] = [];
  return {
    at(now, counts) {
      seen.push({ now, ended: endedOf(counts) });
      while (seen.length > 2 && now - (seen[1]?.now ?? now) > WINDOW_MS) seen.shift();
      const [first] = seen;
      if (!first || now === first.now) return 0;
      return (1_000 * (endedOf(counts) - first.ended)) / (now - first.now);
    },
  };
}

/** `[####----] 57 of 200 (28%), 4.7/s, 30s left, 2 failed`; the bar where there is room for it. `columns`: 0 for a line in a log. */
export function toBatchLine({ status, counts, size }: BatchView, perSec: number, columns: number): string {
  const ended = endedOf(counts);
  const share = size === undefined || size === 0 ? undefined : ended / size;
  const leftMs = size === undefined || perSec === 0 ? undefined : (1_000 * (size - ended)) / perSec;
  const parts = {
    share:
      share === undefined ? `${ended} of ${counts.total} so far` : `${ended} of ${size} (${Math.floor(share * 100)}%)`,
    pace: perSec > 0 && `${perSec.toFixed(1)}/s`,
    left: leftMs !== undefined && leftMs > 0 && `${formatLeft(leftMs)} left`,
    running: counts.running > 0 && `${counts.running} running`,
    failed: counts.failed > 0 && `${counts.failed} failed`,
    stopping: status === "stopping" && "being stopped",
  };
  const toText = () =>
    Object.values(parts)
      .filter((part) => part !== false)
      .join(", ");
  // What must go first where there is no room for all.
  for (const name of ["running", "pace", "left"] as const)
    if (columns > 0 && toText().length > columns) parts[name] = false;
  const text = toText();
  const width = Math.min(BAR_WIDTH.most, columns - text.length - "[] ".length);
  if (share === undefined || width < BAR_WIDTH.least) return text;
  return `[${"#".repeat(Math.floor(share * width)).padEnd(width, "-")}] ${text}`;
}

/** A guess has no hundredths. */
const formatLeft = (ms: number): string => (ms < 10_000 ? `${Math.ceil(ms / 1_000)}s` : formatDuration(ms));

/** How it ended, in one line: what became of its items, and what was undone. */
export function toBatchEnd({ id, counts, undone, undoFailed, createdAt, endedAt }: BatchView): string {
  const codes = Object.entries(counts.failedByCode).map(([code, count]) => `${count} ${code}`);
  const stay = counts.succeeded - undone;
  const parts = [
    `${counts.succeeded} of ${counts.total} succeeded`,
    ...(counts.failed > 0 ? [`${counts.failed} failed (${codes.join(", ")})`] : []),
    ...(counts.canceled > 0 ? [`${counts.canceled} canceled and undone`] : []),
    ...(undone > 0 ? [`${undone} destroyed again`] : []),
    ...(undoFailed > 0 ? [`${undoFailed} could not be destroyed, see fleet ls --state quarantined`] : []),
    ...(counts.canceled > 0 && stay > 0 && undone + undoFailed === 0
      ? [`what succeeded stays (fleet batch cancel ${id} --undo would have destroyed it)`]
      : []),
    ...(endedAt === undefined ? [] : [`in ${formatDuration(endedAt - createdAt)}`]),
  ];
  return `batch ${id}: ${parts.join(", ")}`;
}

export const BATCH_HEAD = [
  "BATCH",
  "STATUS",
  "TEAM",
  "ITEMS",
  "QUEUED",
  "RUNNING",
  "SUCCEEDED",
  "FAILED",
  "CANCELED",
  "AGE",
] as const;

export function toBatchRow({ id, status, team, counts, createdAt }: BatchView, now: number): string[] {
  const { total, queued, running, succeeded, failed, canceled } = counts;
  const numbers = [total, queued, running, succeeded, failed, canceled].map(String);
  return [id, status, team, ...numbers, formatDuration(Math.max(0, now - createdAt))];
}

export function toBatchFacts(view: BatchView): [string, string][] {
  const { id, status, team, policy, counts, size, reason, undone, undoFailed, createdAt, endedAt } = view;
  const { queued, running, succeeded, failed, canceled, failedByCode } = counts;
  return [
    ["batch", id],
    ["status", status],
    ["team", team],
    ["policy", policy],
    ["items", size === undefined || size === counts.total ? String(counts.total) : `${counts.total} of ${size} so far`],
    ...Object.entries({ queued, running, succeeded, failed, canceled }).map(([name, count]): [string, string] => [
      `  ${name}`,
      String(count),
    ]),
    ...Object.entries(failedByCode).map(([code, count]): [string, string] => [`    ${code}`, String(count)]),
    ["stopped for", reason === undefined ? NONE : `${reason.code}: ${reason.message}`],
    ["undone", undoFailed === 0 ? String(undone) : `${undone}, and ${undoFailed} could not be destroyed`],
    ["created", formatTime(createdAt)],
    ["took", endedAt === undefined ? NONE : formatDuration(endedAt - createdAt)],
  ];
}
