/** What a node has room for, now and ever: pure. */
import { FleetError } from "../../shared/errors.ts";
import type { NodeInventory } from "../../shared/state/inventory.ts";

const MIB = 1_048_576;
const GIB = 1_073_741_824;

/** What a node has to do and has promised, over all workers. */
export interface NodeLoad {
  /** Jobs in its queue, running ones included. */
  jobs: number;
  /** Memory and disk of our sandboxes on it, those on their way included. */
  reservedMemoryMib: number;
  reservedDiskGib: number;
}

/** What one sandbox takes of its node. */
export interface Demand {
  memoryMib: number;
  diskGib: number;
}

export interface Overcommit {
  memoryOvercommit: number;
  diskOvercommit: number;
}

/** A node on which a sandbox could stand. `storage`: where its disk would lie; "" where that is not known. */
export interface Site {
  node: NodeInventory;
  storage: string;
  /** Storages of its mount points. */
  mounts: readonly string[];
  demand: Demand;
}

/** Why a site can't be used whatever it has room for; null when it can. */
export function whyUnusable({ node, storage, mounts }: Site): string | null {
  if (!node.online) return "offline";
  const inactive = [storage, ...mounts].find((one) => one !== "" && !storageOf(node, one)?.active);
  return inactive === undefined ? null : `storage ${inactive} is not active`;
}

/** Why a site has no room now; null when it has. */
export function whyNoRoom({ node, storage, demand }: Site, load: NodeLoad, limits: Overcommit): string | null {
  const memoryBytes = (load.reservedMemoryMib + demand.memoryMib) * MIB + node.foreignMemoryBytes;
  // 0: a token without the right to see it; PVE itself decides then.
  if (node.memoryBytes > 0 && memoryBytes > node.memoryBytes * limits.memoryOvercommit)
    return `no memory left for ${demand.memoryMib} MiB`;
  const target = storageOf(node, storage);
  if (!target) return null;
  if ((load.reservedDiskGib + demand.diskGib) * GIB > target.totalBytes * limits.diskOvercommit)
    return `no disk left for ${demand.diskGib} GiB on ${storage}`;
  return target.usedBytes > target.totalBytes * 0.95 ? `storage ${storage} is over 95 % full` : null;
}

/** Throws `invalid_input` when no site could ever take its sandbox, were it empty. What is not known of a site may fit. */
export function assertFitsSomewhere(sites: readonly Site[], limits: Overcommit): void {
  const offers = sites.map((site) => ({ demand: site.demand, most: mostOf(site, limits) }));
  const hasMemory = offers.filter(({ demand, most }) => demand.memoryMib <= most.memoryMib);
  const hasDisk = offers.filter(({ demand, most }) => demand.diskGib <= most.diskGib);
  const [first] = sites;
  if (!first || hasMemory.some((one) => hasDisk.includes(one))) return;
  // Where each has a node and no node has both, the caller may change either.
  const either = hasMemory.length > 0 && hasDisk.length > 0;
  const mostMemory = Math.max(...(either ? hasDisk : offers).map(({ most }) => most.memoryMib));
  const mostDisk = Math.max(...(either ? hasMemory : offers).map(({ most }) => most.diskGib));
  const problems = [
    ...(either || hasMemory.length === 0 ? [tooMuch("memoryMib", first.demand.memoryMib, mostMemory)] : []),
    ...(either || hasDisk.length === 0 ? [tooMuch("diskGib", first.demand.diskGib, mostDisk)] : []),
  ];
  throw new FleetError("invalid_input", problems.map(({ text }) => text).join(either ? " or " : "; "), {
    facts: { fields: problems.map(({ field }) => field) },
  });
}

/** The largest sandbox that a site takes when it is empty. */
function mostOf({ node, storage }: Site, limits: Overcommit): Demand {
  const total = storageOf(node, storage)?.totalBytes ?? 0;
  return {
    memoryMib:
      node.memoryBytes === 0
        ? Number.POSITIVE_INFINITY
        : Math.floor((node.memoryBytes * limits.memoryOvercommit) / MIB),
    diskGib: total === 0 ? Number.POSITIVE_INFINITY : Math.floor((total * limits.diskOvercommit) / GIB),
  };
}

function tooMuch(field: "memoryMib" | "diskGib", wanted: number, most: number) {
  const what = field === "memoryMib" ? "" : " (template and mount points included)";
  return { field, text: `${field}: ${wanted}${what} fits on no node that has the template; the most is ${most}` };
}

const storageOf = (node: NodeInventory, name: string) => node.storages.find((one) => one.name === name);
