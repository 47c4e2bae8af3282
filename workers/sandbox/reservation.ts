/** What a container takes of its node, by its config. */
import type { NodeName } from "../../shared/ids.ts";
import { loadReservation, type Reservation, reserve } from "../../shared/placement/reservation.ts";
import type { Command } from "../../shared/state/operations.ts";
import type { LxcConfig } from "../pve/api.ts";
import { parseMount, parseSizeMib, storageOf } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";

/** PVE's default of memory and swap, where the config names none. */
const DEFAULT_MIB = 512;

/** A template takes disk only. Pure. */
export function toReservation(config: LxcConfig): Reservation {
  const disks: Record<string, number> = {};
  for (const [key, value] of Object.entries(config)) {
    if (key !== "rootfs" && !/^mp\d+$/.test(key)) continue;
    const { volume, size } = parseMount(String(value));
    const storage = storageOf(volume) ?? "";
    // A folder of the node that is bound into it takes nothing.
    if (size !== undefined) disks[storage] = (disks[storage] ?? 0) + parseSizeMib(size) / 1_024;
  }
  if (config.template === true) return { memoryMib: 0, disks };
  return { memoryMib: config.memory ?? DEFAULT_MIB, ...toOthers(config), disks };
}

/** What of it nothing is placed by. As PVE counts: cores, else the limit of CPU time. Pure. */
export const toOthers = ({ cores, cpulimit, swap }: Pick<LxcConfig, "cores" | "cpulimit" | "swap">) => ({
  cores: cores || cpulimit || 0,
  swapMib: swap ?? DEFAULT_MIB,
});

/** For the write after its container's config has changed; what its placement alone knows stays. */
export async function reserveAgain({ context, sandbox }: Run, node: NodeName, config: LxcConfig): Promise<Command[]> {
  const { redis, keys } = context;
  const before = await loadReservation(redis, keys, node, sandbox.id);
  return reserve(keys, node, sandbox.id, { ...before, ...toReservation(config) });
}
