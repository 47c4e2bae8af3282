/**
 * Finds containers with our stamp that no record owns (Redis lost its last writes; a request was carried out long after
 * its answer was lost), and gives them to their provision or removes them, after a grace time and on proof only.
 */
import { FleetError, toFleetError, unreachable } from "../../shared/errors.ts";
import { type NodeName, Vmid } from "../../shared/ids.ts";
import { isEnded, isGone, type OperationRecord, type SandboxRecord } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { WorkerContext } from "../context.ts";
import type { Upid } from "../pve/upid.ts";
import { hasMac, type Place } from "../sandbox/look.ts";
import { clearStaleLock } from "../sandbox/stale-lock.ts";
import { hasEnded, wasRefused } from "../sandbox/task.ts";
import { adoptNode } from "./adopt-node.ts";
import { findStrays, readStray, type Stray } from "./strays.ts";

/**
 * A server that lost its last writes lost no more than these: appendfsync everysec 2 s, a replica somewhat more, and several
 * losses in a row, of which the last may have lost the note of those before.
 */
const LOST_AT_MOST_MS = 30_000;
/** From the lease of a stray's VMID to the request that removes it. */
const LEASED_MS = 3_000;
/** The last beat before the loss, and clocks that differ. */
const LOST_BEFORE_MS = 3_000;

export type Verdict =
  /** Its record is right: only its lease was lost. */
  | "own"
  /** Its provision is still at work: looked at again. */
  | "wait"
  /** Its sandbox has ended, stands elsewhere, or was accepted in a second that Redis lost: nobody can ever use it. */
  | "remove"
  /** Nothing is known of it and nothing says why, or it came back after its end: left to a human. */
  | "leave";

/** What Redis tells of itself. */
export interface Memory {
  /** See `Strays`. */
  losses: readonly number[];
  origin: string;
  /** How long the record of what has ended is kept. */
  retentionMs: number;
}

/** What becomes of a stray: pure. */
export function judge(
  { place, stamp, config }: Stray,
  records: { operation: OperationRecord | null; sandbox: SandboxRecord | null },
  { losses, origin, retentionMs }: Memory,
  now: number,
): Verdict {
  const { operation, sandbox } = records;
  // It was somebody's work before it was ours, so whatever became of its record: `fleet adopt` takes it in again.
  const mayRemove = stamp.adopted !== true;
  if (!sandbox) {
    // A record that is missing says something only where it was, and can't have been forgotten in the ordinary way.
    const isMissed = stamp.origin === origin && now - stamp.at < retentionMs;
    const lost = losses.some((from) => stamp.at >= from - LOST_BEFORE_MS && stamp.at <= from + LOST_AT_MOST_MS);
    return isMissed && lost && mayRemove ? "remove" : "leave";
  }
  // A clone that comes late has a MAC address of PVE's. The sandbox's own was seen gone: somebody restored a backup of it.
  if (isGone(sandbox.state)) return hasMac(config, sandbox.hwaddr) || !mayRemove ? "leave" : "remove";
  if (sandbox.node === place.node && sandbox.vmid === place.vmid) return "own";
  if (operation && !isEnded(operation.status)) return "wait";
  return sandbox.node === undefined || sandbox.vmid === undefined || !mayRemove ? "leave" : "remove";
}

/** One that is left is looked at again after this long. */
const LEFT_MS = 600_000;

/** And a container of somebody else, who should not have it in our range. */
const STRANGER_MS = 60_000;

/** One round: a cluster call, and one more for each stray. Returns how many were removed. */
export async function reconcile(context: WorkerContext, signal: AbortSignal): Promise<number> {
  const { redis, keys, config } = context;
  const now = Date.now();
  const since = await redis.hgetall(keys.strays); // when it was first seen, or until when it is left: negative
  const listed = await listOwnRange(context, signal);
  const due = listed.filter(({ vmid }) => -Number(since[vmid] ?? 0) < now);
  const strays: Stray[] = [];
  const silent = new Set<NodeName>();
  // A node that can't tell must not keep those of the others.
  for (const [node, places] of Map.groupBy(due, (place) => place.node)) {
    try {
      const found = await findStrays(context, places, { signal });
      strays.push(...found.strays);
      for (const { vmid } of found.strangers) await redis.hset(keys.strays, vmid, -(now + STRANGER_MS));
    } catch (error) {
      signal.throwIfAborted();
      silent.add(node);
      context.log.info({ node, code: toFleetError(error).code }, "could not look for containers that nobody owns");
    }
  }
  let removed = 0;
  for (const stray of strays) {
    const { vmid } = stray.place;
    const known = Number(since[vmid] ?? 0);
    if (known <= 0) await redis.hset(keys.strays, vmid, now);
    else if (now - known < config.FLEET_STRAY_GRACE_SECONDS * 1_000) continue;
    else if ((await settle(context, stray, signal)) === "remove") removed += 1;
  }
  for (const vmid of Object.keys(since)) {
    const place = listed.find((one) => String(one.vmid) === vmid);
    const left = place !== undefined && (-Number(since[vmid]) > now || silent.has(place.node));
    if (!left && !strays.some(({ place }) => String(place.vmid) === vmid))
      await context.strays.forget(Vmid.parse(Number(vmid)));
  }
  return removed;
}

/** The list lags, so what it shows is looked at before anything is done. */
async function listOwnRange({ pve, config }: WorkerContext, signal: AbortSignal): Promise<Place[]> {
  const { first, last } = config.PVE_VMID_RANGE;
  const guests = await pve.clusterResources({ type: "vm" }, { signal });
  return guests.flatMap(({ type, node, vmid, template }) => {
    const ours = type === "lxc" && node !== undefined && vmid !== undefined && vmid >= first && vmid <= last;
    return ours && template !== true ? [{ node, vmid: Vmid.parse(vmid) }] : [];
  });
}

/** Returns what was done, which for one that could not be removed yet is to wait. */
async function settle(context: WorkerContext, { place: known }: Stray, signal: AbortSignal): Promise<Verdict> {
  // Those before it in this round may have taken minutes to remove.
  const stray = await readStray(context, known, { signal });
  if (stray === null) return "wait";
  const { store, strays, redis, keys, config, log } = context;
  const { place, stamp } = stray;
  const [operation, sandbox, losses, origin] = await Promise.all([
    store.load(stamp.operation),
    store.loadSandbox(stamp.sandbox),
    strays.losses(),
    strays.origin(),
  ]);
  const memory = { losses, origin, retentionMs: config.FLEET_RETENTION_HOURS * 3_600_000 };
  const verdict = judge(stray, { operation, sandbox }, memory, Date.now());
  const facts = { ...place, operation: stamp.operation, sandbox: stamp.sandbox };
  switch (verdict) {
    case "own":
      await redis.hsetnx(keys.vmids, String(place.vmid), stamp.sandbox);
      return verdict;
    case "wait":
      if (await strays.adopt(stamp, place)) log.warn(facts, "container that Redis forgot goes to its provision");
      return verdict;
    case "leave":
      log.warn(
        facts,
        sandbox
          ? "container of a sandbox that has ended is there again; if nobody restored it on purpose, destroy it by hand"
          : "container with our stamp is unknown to Redis; take it in with fleet adopt, or destroy it by hand",
      );
      await redis.hset(keys.strays, place.vmid, -(Date.now() + LEFT_MS));
      return verdict;
    case "remove":
      try {
        await remove(context, stray, signal);
        return verdict;
      } catch (error) {
        const { code, facts: more } = toFleetError(error);
        log.warn({ ...facts, ...more, code }, "could not remove a container that nobody owns yet");
        return "wait";
      }
    default:
      throw unreachable(verdict);
  }
}

/** Under a slot of its node, like every other task. */
async function remove(
  context: WorkerContext,
  { place, stamp, config: { lock } }: Stray,
  signal: AbortSignal,
): Promise<void> {
  const { slots, pve, tasks, config, strays, log } = context;
  const { node, vmid } = place;
  const slot = slotOf.node(node);
  const holder = stamp.operation;
  const slotTaken = await slots.tryTake(node, config.FLEET_NODE_SLOTS, holder);
  if (typeof slotTaken === "object") await adoptNode(context, node, slotTaken.server);
  if (slotTaken !== "taken")
    throw new FleetError("node_unavailable", `node ${node} has no slot free`, { facts: { node } });
  let upid: Upid | undefined;
  try {
    const leasedAt = performance.now();
    const taken = () =>
      new FleetError("vmid_taken", `VMID ${vmid} may have been leased meanwhile`, { facts: { node, vmid } });
    // A provision's clone would be refused there, and take the next.
    if (!(await strays.lease(vmid))) throw taken();
    // A process that slept must not remove what has come to stand there since.
    const guard = () => {
      if (performance.now() - leasedAt > LEASED_MS) throw taken();
    };
    log.warn({ ...place, operation: stamp.operation, sandbox: stamp.sandbox }, "removing a container that nobody owns");
    upid = await pve.lxc(node, vmid).destroy({ purge: true, force: true }, { signal, guard });
    await tasks.wait(upid, { signal, kind: "destroy" });
    await strays.forget(vmid);
  } catch (error) {
    // Where its task may run on, the slot is given back once nothing runs on the node.
    if (upid === undefined ? wasRefused(error) : hasEnded(error)) await slots.reap(slot, holder);
    // The next round finds it unlocked.
    if (lock !== undefined) await clearStaleLock(context, { place, lock, owner: stamp.operation }, { signal });
    throw error;
  }
  await slots.reap(slot, holder);
}
