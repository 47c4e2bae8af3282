/** PVE's snapshots of a container. */
import { FleetError } from "../../shared/errors.ts";
import type { SnapshotId } from "../../shared/ids.ts";
import type { Keys } from "../../shared/state/keys.ts";
import type { Command } from "../../shared/state/operations.ts";
import type { SandboxRecord, SnapshotRecord } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Call } from "../pve/api.ts";
import type { LxcSnapshot } from "../pve/replies-lxc.ts";
import type { Run } from "../run/run.ts";
import { containerOf, type Place, placeOf } from "./look.ts";
import { runTask } from "./task.ts";

/** A snapshot takes a fraction of a second; one that PVE still works on after this is stuck. */
const SNAPSTATE_PATIENCE_MS = 30_000;
const LOOK_MS = 250;

interface Look {
  is: (snapshot: LxcSnapshot) => boolean | undefined;
  call: Call;
}

/** Left by a task that died: PVE can only delete it, and that by force, since its storage may know nothing of it. */
export const isIncomplete = (snapshot: LxcSnapshot): boolean => snapshot["snapstate"] !== undefined;

/**
 * The snapshot, once PVE does not work on it any more; undefined when there is none. An incomplete one is what is left where
 * the container's lock has been removed. Throws `container_locked`.
 */
export async function findSnapshot(
  run: Run,
  { node, vmid }: Place,
  { is, call }: Look,
): Promise<LxcSnapshot | undefined> {
  const lxc = run.context.pve.lxc(node, vmid);
  const patience = performance.now() + SNAPSTATE_PATIENCE_MS;
  let isLocked = true;
  while (true) {
    const one = (await lxc.snapshots(call)).find(is);
    if (one === undefined || !isIncomplete(one) || !isLocked) return one;
    // Looked at again: its task may have ended in between.
    isLocked = (await lxc.config(call)).lock !== undefined;
    if (!isLocked) continue;
    if (performance.now() > patience) {
      const text = `a snapshot of container ${vmid} on ${node} is stuck; after pct unlock ${vmid} there it can be removed`;
      throw new FleetError("container_locked", text, { facts: { node, vmid } });
    }
    await run.pause(LOOK_MS, call);
  }
}

/** Whether a snapshot is the one that the fleet knows by this id. Pure. */
export const isTakenAs = ({ description }: LxcSnapshot, id: SnapshotId): boolean => description?.split(/\s/)[1] === id;

/** Forgets a snapshot's record. */
export const forgetCommands = (keys: Keys, { id, sandbox }: Pick<SnapshotRecord, "id" | "sandbox">): Command[] => [
  ["DEL", keys.snapshot(id)],
  ["SREM", keys.sandboxSnapshots(sandbox), id],
  ["ZREM", keys.snapshotExpiries, id],
  ["HDEL", keys.branches, id],
];

/** PVE freezes a running container for its snapshot and thaws it afterwards, whatever it was before. */
export async function keepPaused(run: Run, sandbox: SandboxRecord, call: Call): Promise<void> {
  const place = placeOf(sandbox);
  if (sandbox.state !== "paused" || place === null) return;
  await run.context.shell?.run(place.node, { verb: "freeze", vmid: place.vmid }, call);
}

/** Deletes a snapshot that the fleet took of the run's sandbox; returns whether PVE still had it. */
export async function removeRecorded(run: Run, { id, name }: SnapshotRecord): Promise<boolean> {
  const { place } = containerOf(run);
  const found = await findSnapshot(run, place, { is: (one) => one.name === name, call: run.call });
  // Somebody's own that took its name is not ours to delete.
  if (found === undefined || !isTakenAs(found, id)) return false;
  const { FLEET_NODE_SLOTS: slots } = run.context.config;
  await run.withSlot(slotOf.node(place.node), slots, () => dropSnapshot(run, place, found));
  return true;
}

/** The same, but for what is left of one that was never finished: that goes first. */
export async function findWhole(run: Run, place: Place, look: Look): Promise<LxcSnapshot | undefined> {
  const found = await findSnapshot(run, place, look);
  if (found === undefined || !isIncomplete(found)) return found;
  await dropSnapshot(run, place, found);
  return undefined;
}

/** Deletes a snapshot, as a step of the run; one that has gone meanwhile was meant to. */
export async function dropSnapshot(run: Run, { node, vmid }: Place, snapshot: LxcSnapshot): Promise<void> {
  const { name } = snapshot;
  try {
    await runTask(run, {
      step: "delete_snapshot",
      kind: "delete_snapshot",
      type: "vzdelsnapshot",
      node,
      vmid,
      start: () => run.context.pve.lxc(node, vmid).deleteSnapshot(name, forceFor(snapshot), run.writing),
    });
  } catch (error) {
    if (!(error instanceof FleetError) || error.code !== "snapshot_not_found") throw error;
  }
}

const forceFor = (snapshot: LxcSnapshot) => (isIncomplete(snapshot) ? { force: true } : {});

/** For an undo: deletes a snapshot if it is there. Returns whether it was. */
export async function removeSnapshot(run: Run, place: Place, { is, call }: Look): Promise<boolean> {
  const { pve, tasks, config } = run.context;
  try {
    const found = await findSnapshot(run, place, { is, call });
    if (found === undefined) return false;
    const remove = async () => {
      const upid = await pve.lxc(place.node, place.vmid).deleteSnapshot(found.name, forceFor(found), call);
      await tasks.wait(upid, { signal: call.signal, kind: "delete_snapshot" });
    };
    await run.withSlot(slotOf.node(place.node), config.FLEET_NODE_SLOTS, remove, call);
    return true;
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    if (error.code === "container_missing" || error.code === "snapshot_not_found") return false;
    throw error.with({ ...place });
  }
}
