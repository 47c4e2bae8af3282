/** Containers with our stamp that no record owns, as far as Redis knows. */
import { FleetError } from "../../shared/errors.ts";
import type { WorkerContext } from "../context.ts";
import type { Call } from "../pve/api.ts";
import type { Place } from "../sandbox/look.ts";
import { parseStamp, type Stamp } from "../sandbox/stamp.ts";

/** Who has leased the VMID of a stray while it is removed, so that no provision gets it meanwhile. */
export const STRAY = "stray";

export interface Stray {
  place: Place;
  stamp: Stamp;
  lock: string | undefined;
}

/** Those of some places that nobody has leased and whose live config carries this fleet's stamp. */
export async function findStrays(context: WorkerContext, places: readonly Place[], call: Call): Promise<Stray[]> {
  if (places.length === 0) return [];
  const owners = await context.redis.hmget(context.keys.vmids, ...places.map(({ vmid }) => String(vmid)));
  const strays: Stray[] = [];
  for (const place of places.filter((_, at) => owners[at] === null || owners[at] === STRAY)) {
    const stray = await readStray(context, place, call);
    if (stray) strays.push(stray);
  }
  return strays;
}

async function readStray({ pve, config }: WorkerContext, place: Place, call: Call): Promise<Stray | null> {
  try {
    const { description, lock } = await pve.lxc(place.node, place.vmid).config(call);
    const stamp = parseStamp(description, place.vmid);
    return stamp?.fleet === config.FLEET_PREFIX ? { place, stamp, lock } : null;
  } catch (error) {
    // Gone meanwhile, or none of ours to read.
    if (error instanceof FleetError && ["container_missing", "forbidden"].includes(error.code)) return null;
    throw error;
  }
}
