/** Taking a container away, and what of it goes with the record: leases, addresses, reservations, snapshots. */
import { FleetError } from "../../shared/errors.ts";
import type { Vmid } from "../../shared/ids.ts";
import { unreserve } from "../../shared/placement/reservation.ts";
import type { Keys } from "../../shared/state/keys.ts";
import type { Command } from "../../shared/state/operations.ts";
import type { Call, LxcConfig } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { CLONE, lookUntilClear, type Place, placeOf } from "./look.ts";
import { clearStaleLock } from "./stale-lock.ts";

/** A container in the making, or locked by something we can't see, is given this long. */
const PATIENCE_MS = 10_000;
/** PVE may execute a request this late after its answer was lost (its proxy gives up after 30 s). */
const LATE_MS = 60_000;

/**
 * Destroys the run's container when it is ours; returns whether there was one. What is not ours stays.
 * Looks first, so a lost reply or a human's help is no failure. Throws `protected`, or `container_locked` after a while.
 */
export async function destroyContainer(run: Run, { call, writing }: { call: Call; writing: Call }): Promise<boolean> {
  const place = placeOf(run.sandbox);
  // `placing`: no clone was asked for, or each request was refused; the node need not even be there to tell.
  if (!place || run.sandbox.state === "placing") return false;
  const { step } = run.operation;
  const unknown = step?.name === CLONE && step.open === true && step.upid === undefined;
  const found = await lookUntilClear(run, place, {
    call,
    patienceMs: PATIENCE_MS,
    ...(unknown ? { believeMissingAt: step.at + LATE_MS } : {}),
  });
  if (found.is === "foreign" && (await finishDestroyed(run, found.place, { call, writing }))) return true;
  if (found.is !== "ours") return false;
  const { node, vmid } = found.place;
  try {
    const upid = await run.context.pve.lxc(node, vmid).destroy({ purge: true, force: true }, writing);
    await run.context.tasks.wait(upid, { signal: call.signal, kind: "destroy" });
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    if (error.code !== "container_missing") throw error.with({ node, vmid });
  }
  return true;
}

/** Its task may be about to end. */
const LAST_STEP_MS = 2_000;
const LOOK_MS = 250;

/**
 * A destroy that fails in its last step (PVE::AccessControl::remove_vm_access waits for a lock of the whole cluster) leaves a
 * config of nothing but a lock, whose container is gone: nobody's stamp is on it, and it keeps the VMID. Returns whether that was
 * what stood there, and is gone. Throws `container_locked` while its lock stays.
 */
async function finishDestroyed(
  run: Run,
  place: Place,
  { call, writing }: { call: Call; writing: Call },
): Promise<boolean> {
  const { context } = run;
  const lxc = context.pve.lxc(place.node, place.vmid);
  const read = () =>
    lxc.config(call).catch((error: unknown) => {
      if (error instanceof FleetError && error.code === "container_missing") return null;
      throw error;
    });
  const patience = performance.now() + LAST_STEP_MS;
  let config = await read();
  while (config?.lock !== undefined && isHusk(config) && performance.now() < patience) {
    await run.pause(LOOK_MS, call);
    config = await read();
  }
  if (config === null) return true;
  if (!isHusk(config)) return false;
  const { lock } = config;
  if (lock !== undefined && !(await clearStaleLock(context, { place, lock, owner: run.id }, call))) {
    const text = `container ${place.vmid} on ${place.node} is destroyed but for PVE's last step; after pct unlock ${place.vmid} there it goes`;
    throw new FleetError("container_locked", text, { facts: { ...place, lock } });
  }
  const upid = await lxc.destroy({ purge: true, force: true }, writing);
  await context.tasks.wait(upid, { signal: call.signal, kind: "destroy" });
  return true;
}

const isHusk = (config: LxcConfig): boolean =>
  Object.entries(config).every(([key, value]) => key === "digest" || (key === "lock" && value === "destroyed"));

/** For the write in which a VMID becomes free; URLs may still carry it, so its turn comes last. */
export const freeVmid = (keys: Keys, vmid: Vmid): Command[] => [
  ["HDEL", keys.vmids, vmid],
  ["ZADD", keys.vmidsFreed, Date.now(), vmid],
];

/** Everything that a sandbox without a container must not keep, for the write that ends it. */
export async function releaseCommands(run: Pick<Run, "context" | "sandbox">): Promise<Command[]> {
  const { keys, redis } = run.context;
  const { id, team, node, vmid, address, leasedIp } = run.sandbox;
  const snapshots = await redis.smembers(keys.sandboxSnapshots(id));
  return [
    ...(vmid === undefined ? [] : freeVmid(keys, vmid)),
    ...(node === undefined ? [] : unreserve(keys, node, id)),
    ...(address === undefined ? [] : [["HDEL", keys.addresses, address]]),
    ...(leasedIp === undefined ? [] : [["HDEL", keys.ips, leasedIp]]),
    ...snapshots.flatMap((snapshot) => [
      ["DEL", keys.snapshot(snapshot)],
      ["ZREM", keys.snapshotExpiries, snapshot],
      ["HDEL", keys.branches, snapshot],
    ]),
    ["DEL", keys.sandboxSnapshots(id)],
    ["HDEL", keys.templates(team), id],
    ["HDEL", keys.replicas, id],
    ...(vmid === undefined ? [] : [["HDEL", keys.replicaUses, vmid]]),
  ];
}
