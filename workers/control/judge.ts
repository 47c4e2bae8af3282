/** What becomes of a container with our stamp that no record owns: pure. */
import { isEnded, isGone, type OperationRecord, type SandboxRecord } from "../../shared/state/records.ts";
import type { Loss } from "../../shared/state/strays.ts";
import { hasMac } from "../sandbox/look.ts";
import type { Stray } from "./strays.ts";

/**
 * A server that lost its last writes lost no more than these: appendfsync everysec 2 s, a replica somewhat more, and several
 * losses in a row, of which the last may have lost the note of those before.
 */
const LOST_AT_MOST_MS = 30_000;
/** The last beat before the loss, and clocks that differ. */
const LOST_BEFORE_MS = 3_000;
/** Redis was away for longer than a start takes: it may have come back from a copy, which lacks more than a second. */
const LONG_AWAY_MS = 600_000;

export type Judgement =
  /** Its record is right: only its lease was lost. */
  | { verdict: "own" }
  /** Its provision is still at work: looked at again. */
  | { verdict: "wait"; reason: string }
  /** Nobody can ever use it: that is proven. */
  | { verdict: "remove"; reason: string }
  /** Nobody can use it as far as this Redis knows: removed when the long grace has passed. */
  | { verdict: "later"; reason: string }
  /** It may be somebody's work: only an operator's word removes it. */
  | { verdict: "keep"; reason: string };
export type Verdict = Judgement["verdict"];

/** What Redis tells of itself. */
export interface Memory {
  losses: readonly Loss[];
  /** See `Strays`. */
  origin: string;
  /** How long the record of what has ended is kept. */
  retentionMs: number;
}

export function judge(
  { place, stamp, config }: Stray,
  { operation, sandbox }: { operation: OperationRecord | null; sandbox: SandboxRecord | null },
  memory: Memory,
  now: number,
): Judgement {
  if (config.template === true) return { verdict: "keep", reason: "it is a template" };
  const isAt = sandbox?.node === place.node && sandbox.vmid === place.vmid;
  if (sandbox && isAt && !isGone(sandbox.state)) return { verdict: "own" };
  if (sandbox && !isGone(sandbox.state) && operation && !isEnded(operation.status))
    return { verdict: "wait", reason: "its provision is at work" };
  // It was somebody's work before it was ours, so whatever became of its record.
  if (stamp.adopted === true)
    return { verdict: "keep", reason: "it was there before the fleet; fleet adopt takes it in again" };
  if (!sandbox) return judgeUnknown(stamp, memory, now);
  if (isGone(sandbox.state)) {
    // A clone that comes late has a MAC address of PVE's. One with the sandbox's own is a restored backup, or its node is back.
    return hasMac(config, sandbox.hwaddr)
      ? { verdict: "later", reason: `its sandbox has ended (${sandbox.state}), and it is there again` }
      : { verdict: "remove", reason: "its sandbox had ended when it came" };
  }
  return sandbox.node === undefined || sandbox.vmid === undefined
    ? { verdict: "keep", reason: "its sandbox lives, and its record does not say where" }
    : { verdict: "remove", reason: `its sandbox stands elsewhere (${sandbox.vmid} on ${sandbox.node})` };
}

/** A record that is missing says something only where it was, and can't have been lost with others that matter. */
function judgeUnknown(stamp: Stray["stamp"], { losses, origin, retentionMs }: Memory, now: number): Judgement {
  if (stamp.origin !== origin) {
    const reason =
      "this Redis has never known it: its data is new, or it is another fleet's; fleet reconcile --rebuild takes it in";
    return { verdict: "keep", reason };
  }
  const loss = losses.find(({ from, until }) => {
    const end = Math.max(until, from + LOST_AT_MOST_MS);
    return stamp.at >= from - LOST_BEFORE_MS && stamp.at <= end;
  });
  if (loss === undefined) return { verdict: "later", reason: "no record of it is left" };
  const isLastSecond = loss.until - loss.from <= LONG_AWAY_MS && stamp.at <= loss.from + LOST_AT_MOST_MS;
  if (!isLastSecond) {
    const reason =
      "it was made at a time that Redis has forgotten, as after a restored copy; fleet reconcile --rebuild takes it in";
    return { verdict: "keep", reason };
  }
  return now - stamp.at < retentionMs
    ? { verdict: "remove", reason: "it was made in a second that Redis lost" }
    : { verdict: "later", reason: "no record of it is left" };
}
