/** Taking a container away, and what of it goes with the record: leases, addresses, reservations, snapshots. */
import { FleetError } from "../../shared/errors.ts";
import type { Command } from "../../shared/state/operations.ts";
import type { Call } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { lookAt, placeOf } from "./look.ts";

/**
 * Destroys the run's container when it is ours; returns whether there was one.
 * Looks first and after a refusal, so a lost reply or a human's help is no failure.
 */
export async function destroyContainer(run: Run, call: Call): Promise<boolean> {
  const place = placeOf(run.sandbox);
  if (!place) return false;
  const sight = await lookAt(run, place, call);
  // What is not stamped with this sandbox is somebody else's and stays.
  if (sight.is !== "ours") return false;
  if (sight.config.protection === true) {
    throw new FleetError(
      "protected",
      `container ${place.vmid} on ${place.node} has PVE's protection flag; clear it to destroy the sandbox`,
      { facts: { ...place } },
    );
  }
  const { lxc, tasks } = { lxc: run.context.pve.lxc(place.node, place.vmid), tasks: run.context.tasks };
  try {
    const upid = await lxc.destroy({ purge: true, force: true }, call);
    await tasks.wait(upid, { signal: call.signal, kind: "destroy" });
  } catch (error) {
    if (!(error instanceof FleetError) || error.code !== "container_missing") throw error;
  }
  return true;
}

/** Everything that a sandbox without a container must not keep, for the write that ends it. */
export async function releaseCommands(run: Run): Promise<Command[]> {
  const { keys, redis } = run.context;
  const { id, node, vmid, address, leasedIp } = run.sandbox;
  const snapshots = await redis.smembers(keys.sandboxSnapshots(id));
  return [
    ...(vmid === undefined ? [] : [["HDEL", keys.vmids, vmid]]),
    ...(node === undefined ? [] : [["HDEL", keys.reserved(node), id]]),
    ...(address === undefined ? [] : [["HDEL", keys.addresses, address]]),
    ...(leasedIp === undefined ? [] : [["HDEL", keys.ips, leasedIp]]),
    ...snapshots.map((snapshot) => ["DEL", keys.snapshot(snapshot)]),
    ["DEL", keys.sandboxSnapshots(id)],
  ];
}
