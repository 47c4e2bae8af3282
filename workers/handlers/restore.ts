import { FleetError } from "../../shared/errors.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { SnapshotRecord } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { LxcConfig } from "../pve/api.ts";
import type { LxcSnapshot } from "../pve/replies-lxc.ts";
import type { Run } from "../run/run.ts";
import { containerOf, ownContainer } from "../sandbox/look.ts";
import { startContainer } from "../sandbox/power.ts";
import { awaitOwnReady } from "../sandbox/ready.ts";
import { reserveAgain } from "../sandbox/reservation.ts";
import { findSnapshot, isIncomplete, isTakenAs } from "../sandbox/snapshots.ts";
import { readStanding, type Standing, stoppedWrite, tellStanding } from "../sandbox/standing.ts";
import { storageTypes } from "../sandbox/storage-types.ts";
import { runTask } from "../sandbox/task.ts";
import type { Handler } from "./handler.ts";

export const restore: Handler<"restore"> = {
  async run(run) {
    const { place } = await ownContainer(run);
    const snapshot = await loadOwn(run);
    const { before = await readStanding(run, run.call) } = run.operation;
    await run.withSlot(slotOf.node(place.node), run.context.config.FLEET_NODE_SLOTS, async () => {
      if (!isTakenBack(run)) await takeBack(run, snapshot, before);
      if (before !== "stopped") await startContainer(run);
    });
    const state = before === "stopped" ? before : await standAs(run, before);
    const { config } = await ownContainer(run);
    const { id: snapshotId, name } = snapshot;
    const write: Write = state === "stopped" ? stoppedWrite(run) : { sandbox: { state } };
    // The config is the snapshot's, too.
    const reserved = await reserveAgain(run, place.node, config);
    return {
      result: { snapshotId, name, ...place, state },
      write: { ...write, also: [...(write.also ?? []), ...reserved] },
    };
  },

  undo: tellStanding,
};

/** Steps that come after it; before them a repeated rollback changes nothing. */
const isTakenBack = ({ operation: { step } }: Run): boolean => /^(start( failed)?|pause)$/.test(step?.name ?? "");

async function loadOwn(run: Run<"restore">): Promise<SnapshotRecord> {
  const { snapshotId } = run.input;
  const snapshot = await run.context.store.loadSnapshot(snapshotId);
  if (snapshot?.sandbox === run.sandbox.id) return snapshot;
  throw new FleetError("snapshot_not_found", `sandbox ${run.sandbox.id} has no snapshot ${snapshotId}`, {
    facts: { snapshot: snapshotId, sandbox: run.sandbox.id },
  });
}

/** PVE stops the container for it, and leaves it stopped. Throws what stands in the way before anything is touched. */
async function takeBack(run: Run<"restore">, { id, name }: SnapshotRecord, before: Standing): Promise<void> {
  const { place, lxc, config } = await ownContainer(run);
  const found = await findSnapshot(run, place, { is: (one) => one.name === name, call: run.call });
  if (!found || !isTakenAs(found, id) || isIncomplete(found)) {
    throw new FleetError(
      "snapshot_not_found",
      `container ${place.vmid} on ${place.node} has no${found && isIncomplete(found) ? " whole" : ""} snapshot ${name} of ours`,
      {
        facts: { snapshot: id, ...place },
      },
    );
  }
  refuseBlocked(run, { config, name, all: await lxc.snapshots(run.call) });
  await runTask(run, {
    step: "restore",
    kind: "rollback",
    type: "vzrollback",
    write: { operation: { before } },
    start: () => lxc.rollback(name, {}, run.writing),
  });
}

/** ZFS goes back to the newest snapshot only (ZFSPoolPlugin::volume_rollback_is_possible). */
function refuseBlocked(
  run: Run<"restore">,
  { config, name, all }: { config: LxcConfig; name: string; all: readonly LxcSnapshot[] },
): void {
  const { node } = containerOf(run).place;
  if (!storageTypes(run.context.inventory.current(), node, config).includes("zfspool")) return;
  const newer = newerThan(name, all);
  if (newer.length === 0) return;
  throw new FleetError(
    "snapshot_blocked",
    `ZFS goes back to the newest snapshot only; delete the newer ones first: ${newer.join(", ")}`,
    { facts: { snapshots: newer, node } },
  );
}

/** Names of the snapshots that were taken after it. Pure. */
function newerThan(name: string, all: readonly LxcSnapshot[]): string[] {
  const takenAt = all.find((one) => one.name === name)?.snaptime ?? 0;
  const comesAfter = (one: LxcSnapshot): boolean => {
    if (one.name === name) return false;
    const parent = all.find((other) => other.name === one.parent);
    return (one.snaptime ?? 0) > takenAt || parent?.name === name || (parent !== undefined && comesAfter(parent));
  };
  return all.filter(comesAfter).map((one) => one.name);
}

/** Its memory is another than before: what was frozen is started, and frozen again. */
async function standAs(run: Run<"restore">, before: "running" | "paused"): Promise<"running" | "paused"> {
  await awaitOwnReady(run);
  const { shell } = run.context;
  const { node, vmid } = run.sandbox;
  if (before === "running" || shell === null || node === undefined || vmid === undefined) return "running";
  await run.begin("pause");
  await shell.run(node, { verb: "freeze", vmid }, run.writing);
  return "paused";
}
