import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import { parseOrRefuse } from "../../shared/jobs/problems.ts";
import { isGone, isProvisional, type SandboxRecord } from "../../shared/state/records.ts";
import type { Fleet } from "../fleet.ts";
import { toHostId } from "./services.ts";

export interface InstanceQuery {
  instanceId: string;
  /** Hints for instances that were made before the fleet, and so have no instance id in it. */
  vmid?: number | undefined;
  hostname?: string | undefined;
}

const Query = z.object({
  instanceId: z.string().min(1),
  vmid: z.number().optional(),
  hostname: z.string().optional(),
});

/** The sandbox of an instance that lives. Throws `invalid_input`, `sandbox_not_found`, `sandbox_gone`. */
export async function findSandbox(fleet: Fleet, asked: InstanceQuery): Promise<SandboxRecord> {
  const query = parseOrRefuse("get", Query, asked);
  const { instanceId } = query;
  const asGiven = await get(fleet, instanceId);
  const found = asGiven ?? (await get(fleet, toHostId(instanceId))) ?? (await findOlder(fleet, query));
  if (!found || found.state === "template") {
    throw new FleetError("sandbox_not_found", `there is no instance ${instanceId}`, {
      facts: { instance: instanceId },
    });
  }
  if (isGone(found.state)) {
    throw new FleetError("sandbox_gone", `instance ${instanceId} has ended`, { facts: { sandbox: found.id } });
  }
  return found;
}

/** Null where there is none. */
export async function get(fleet: Fleet, id: string | number): Promise<SandboxRecord | null> {
  return fleet.sandboxes.get(id).catch((error: unknown) => {
    if (error instanceof FleetError && error.code === "sandbox_not_found") return null;
    throw error;
  });
}

/**
 * One without an instance id, by VMID or host name. VMIDs are used again: a hint that leads to an instance with another
 * name leads astray.
 */
async function findOlder(fleet: Fleet, { instanceId, vmid, hostname }: InstanceQuery): Promise<SandboxRecord | null> {
  const byVmid = vmid === undefined ? null : await get(fleet, vmid);
  if (byVmid && isOlder(byVmid) && (hostname === undefined || byVmid.hostname === hostname)) return byVmid;
  const names = new Set([toHostId(instanceId), hostname]);
  const all = await fleet.sandboxes.list();
  return all.find((one) => isOlder(one) && one.hostname !== undefined && names.has(one.hostname)) ?? null;
}

const isOlder = ({ instanceId, state }: SandboxRecord): boolean => instanceId === undefined && !isProvisional(state);
