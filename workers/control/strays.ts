/** Containers with our stamp that no record owns, as far as Redis knows. */
import { FleetError } from "../../shared/errors.ts";
import type { Vmid } from "../../shared/ids.ts";
import { STRAY } from "../../shared/state/strays.ts";
import type { WorkerContext } from "../context.ts";
import type { Call, ClusterResource, LxcConfig } from "../pve/api.ts";
import type { Place } from "../sandbox/look.ts";
import { parseStamp, type Stamp } from "../sandbox/stamp.ts";

export interface Stray {
  place: Place;
  stamp: Stamp;
  config: LxcConfig;
}

/** A container in our range and pool, as the cluster's list shows it, which lags. */
export interface Listed extends Place {
  name: string | undefined;
}

/** Which of a list may be ours: in the range, and in the pool where there is one. */
export function listOwn(guests: readonly ClusterResource[], { config }: Pick<WorkerContext, "config">): Listed[] {
  const { PVE_VMID_RANGE: range, PVE_POOL: own } = config;
  return guests.flatMap(({ type, node, vmid, template, pool, name }) => {
    if (type !== "lxc" || node === undefined || vmid === undefined || template === true) return [];
    const isOurs = vmid >= range.first && vmid <= range.last && (own === undefined || pool === own);
    return isOurs ? [{ node, vmid, name }] : [];
  });
}

/** VMIDs in one question to Redis. */
const PAGE = 1_000;

/** Those that nobody has leased. */
export async function unleased<T extends { vmid: Vmid }>(
  { redis, keys }: Pick<WorkerContext, "redis" | "keys">,
  all: readonly T[],
): Promise<T[]> {
  const found: T[] = [];
  for (let at = 0; at < all.length; at += PAGE) {
    const page = all.slice(at, at + PAGE);
    const owners = await redis.hmget(keys.vmids, ...page.map(({ vmid }) => String(vmid)));
    found.push(...page.filter((_, index) => owners[index] === null || owners[index] === STRAY));
  }
  return found;
}

/** A lost second forgets some containers. So many are another matter, a restored backup or an empty Redis. */
const MOST = 500;
/** Reads at once: PVE has three workers a node. */
const AT_ONCE = 3;

/** Those of some places that nobody has leased, with this fleet's stamp in their live config. */
export async function findStrays(context: WorkerContext, places: readonly Place[], call: Call): Promise<Stray[]> {
  const unowned = await unleased(context, places);
  if (unowned.length > MOST) {
    context.log.error({ containers: unowned.length }, "Redis knows none of these containers: has it lost its data?");
    return [];
  }
  const found: Stray[] = [];
  for (let at = 0; at < unowned.length; at += AT_ONCE) {
    const read = await Promise.all(unowned.slice(at, at + AT_ONCE).map((place) => readStray(context, place, call)));
    found.push(...read.filter((one) => one !== null));
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
