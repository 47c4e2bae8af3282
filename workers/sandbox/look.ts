/** Looking at a container before acting on it: live config, never `cluster/resources`, which lags. */
import { FleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { Call, LxcApi, LxcConfig } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { parseStamp } from "./stamp.ts";

export type Sight = { is: "missing" } | { is: "foreign"; config: LxcConfig } | { is: "ours"; config: LxcConfig };

/** What stands at the sandbox's VMID. `ours` means: stamped with this sandbox. */
export async function lookAt(run: Run, place: Place, call: Call): Promise<Sight> {
  try {
    const config = await run.context.pve.lxc(place.node, place.vmid).config(call);
    const stamp = parseStamp(config.description, place.vmid);
    const ours = stamp?.sandbox === run.sandbox.id && stamp.fleet === run.context.config.FLEET_PREFIX;
    return { is: ours ? "ours" : "foreign", config };
  } catch (error) {
    if (error instanceof FleetError && error.code === "container_missing") return { is: "missing" };
    throw error;
  }
}

export interface Place {
  node: NodeName;
  vmid: Vmid;
}

/** Node and VMID of a sandbox, or null while it has none. */
export function placeOf(sandbox: SandboxRecord): Place | null {
  return sandbox.node !== undefined && sandbox.vmid !== undefined ? { node: sandbox.node, vmid: sandbox.vmid } : null;
}

/** The container of a sandbox that must have one. Throws `sandbox_gone`. */
export function containerOf(run: Run): { place: Place; lxc: LxcApi } {
  const place = placeOf(run.sandbox);
  if (!place)
    throw new FleetError("sandbox_gone", `sandbox ${run.sandbox.id} has no container`, {
      facts: { sandbox: run.sandbox.id },
    });
  return { place, lxc: run.context.pve.lxc(place.node, place.vmid) };
}
