/** Containers with our stamp that no record owns, as far as Redis knows. */
import { FleetError } from "../../shared/errors.ts";
import { STRAY } from "../../shared/state/strays.ts";
import type { WorkerContext } from "../context.ts";
import type { Call, LxcConfig } from "../pve/api.ts";
import type { Place } from "../sandbox/look.ts";
import { parseStamp, type Stamp } from "../sandbox/stamp.ts";

export interface Stray {
  place: Place;
  stamp: Stamp;
  config: LxcConfig;
}

/** A lost second forgets some containers. So many are another matter, a restored backup or an empty Redis, and left to a human. */
const MOST = 500;
/** Reads at once: PVE has three workers a node. */
const AT_ONCE = 3;

/** Those of some places that nobody has leased: with this fleet's stamp in their live config, and without. */
export async function findStrays(
  context: WorkerContext,
  places: readonly Place[],
  call: Call,
): Promise<{ strays: Stray[]; strangers: Place[] }> {
  const found = { strays: [] as Stray[], strangers: [] as Place[] };
  if (places.length === 0) return found;
  const owners = await context.redis.hmget(context.keys.vmids, ...places.map(({ vmid }) => String(vmid)));
  const unowned = places.filter((_, at) => owners[at] === null || owners[at] === STRAY);
  if (unowned.length > MOST) {
    context.log.error({ containers: unowned.length }, "Redis knows none of these containers: has it lost its data?");
    return found;
  }
  for (let at = 0; at < unowned.length; at += AT_ONCE) {
    const some = unowned.slice(at, at + AT_ONCE);
    const read = await Promise.all(some.map((place) => readStray(context, place, call)));
    for (const [index, place] of some.entries()) {
      const stray = read[index];
      if (stray) found.strays.push(stray);
      else found.strangers.push(place);
    }
  }
  return found;
}

/** Null: it is none. */
export async function readStray({ pve, config }: WorkerContext, place: Place, call: Call): Promise<Stray | null> {
  try {
    const live = await pve.lxc(place.node, place.vmid).config(call);
    const stamp = parseStamp(live.description, place.vmid);
    return stamp?.fleet === config.FLEET_PREFIX ? { place, stamp, config: live } : null;
  } catch (error) {
    // Gone meanwhile, or none of ours to read.
    if (error instanceof FleetError && ["container_missing", "forbidden"].includes(error.code)) return null;
    throw error;
  }
}
