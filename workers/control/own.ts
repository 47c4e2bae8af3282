/** A sandbox's container as it is now. */
import { FleetError } from "../../shared/errors.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import type { LxcConfig } from "../pve/api.ts";
import { hasMac, type Place } from "../sandbox/look.ts";
import { parseStamp } from "../sandbox/stamp.ts";
import type { Round } from "./round.ts";

/** Its live config; null where it can't be told, or is not there. `foreign`: what stands there is somebody else's by now. */
export async function readOwn(
  { pve, config: { FLEET_PREFIX: fleet } }: WorkerContext,
  { id, member, hwaddr }: SandboxRecord,
  { node, vmid }: Place,
  round: Round,
): Promise<LxcConfig | "foreign" | null> {
  try {
    const config = await pve.lxc(node, vmid).config(round);
    const stamp = parseStamp(config.description, vmid);
    const isOurs =
      stamp === null ? hasMac(config, hwaddr) : stamp.fleet === fleet && [id, member].includes(stamp.sandbox);
    if (isOurs) return config;
    // One in the making has no notes for a moment; and of one without notes only the MAC address tells.
    return config.lock === "create" || (stamp === null && hwaddr === undefined) ? null : "foreign";
  } catch (error) {
    if (error instanceof FleetError && ["container_missing", "forbidden"].includes(error.code)) return null;
    throw error;
  }
}
