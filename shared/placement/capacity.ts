/** What a node has room for, now and ever: pure. */
import { FleetError } from "../errors.ts";
import type { NodeInventory, Storage } from "../state/inventory.ts";
import type { NodeSettings } from "../state/nodes.ts";
import type { Reservation } from "./reservation.ts";

export const MIB = 1_048_576;
export const GIB = 1_073_741_824;

/** PVE counts what its storages hold every ten seconds, and its answer may be as old again. */
const UNCOUNTED_MS = 20_000;

/** What a node has to do and has promised, over all workers. */
export interface NodeLoad {
  /** Jobs in its queue, running ones included. */
  jobs: number;
  /** Sandboxes on it and on their way there, of which those without memory are templates. */
  sandboxes: number;
  /** Memory and, by storage, disk of them. */
  reservedMemoryMib: number;
  reservedDiskGib: ReadonlyMap<string, number>;
  /** Full clones that PVE may not have counted yet. */
  copies: readonly NonNullable<Reservation["copy"]>[];
  /** How many of each group are here. */
  groups: ReadonlyMap<string, number>;
}

export const NO_LOAD: NodeLoad = {
  jobs: 0,
  sandboxes: 0,
  reservedMemoryMib: 0,
  reservedDiskGib: new Map(),
  copies: [],
  groups: new Map(),
};

/** The sum of a node's reservations. */
export function toLoad(reservations: readonly Reservation[], now: number): Omit<NodeLoad, "jobs"> {
  const reservedDiskGib = new Map<string, number>();
  const groups = new Map<string, number>();
  const copies: NonNullable<Reservation["copy"]>[] = [];
  let sandboxes = 0;
  let reservedMemoryMib = 0;
  for (const { memoryMib, disks, copy, group } of reservations) {
    if (memoryMib > 0) sandboxes += 1;
    reservedMemoryMib += memoryMib;
    for (const storage in disks)
      reservedDiskGib.set(storage, (reservedDiskGib.get(storage) ?? 0) + (disks[storage] ?? 0));
    if (copy !== undefined && (copy.doneAt === undefined || copy.doneAt > now - 2 * UNCOUNTED_MS)) copies.push(copy);
    if (group !== undefined) groups.set(group, (groups.get(group) ?? 0) + 1);
  }
  return { sandboxes, reservedMemoryMib, reservedDiskGib, copies, groups };
}

/** What one sandbox takes of its node. */
export interface Demand {
  memoryMib: number;
  /** GiB by storage. */
  disks: Readonly<Record<string, number>>;
  /** GiB that its full clone writes at once; 0 for a linked one. */
  copiedGib: number;
}

export interface Overcommit {
  memoryOvercommit: number;
  diskOvercommit: number;
  /** Sandboxes of ours on one node; undefined: as many as fit. */
  nodeSandboxes?: number | undefined;
  /** A storage that holds more than this share of its size takes no new disks. */
  storageFullPercent: number;
}

/** A node on which a sandbox could stand. `storage`: where its disk would lie; "" where that is not known. */
export interface Site {
  node: NodeInventory;
  storage: string;
  /** Storages of its mount points. */
  mounts: readonly string[];
  demand: Demand;
}

/** What the nodes have promised, and what operators have set for each. */
export interface Promises {
  loads: ReadonlyMap<string, NodeLoad>;
  settings: ReadonlyMap<string, NodeSettings>;
  /** When PVE was last asked, ms since the epoch. */
  readAt: number;
}

/** A node's limits: its own where an operator has set them. */
function limitsOf<L extends Overcommit>(node: NodeInventory, settings: Promises["settings"], limits: L): L {
  const own = settings.get(node.name);
  if (own === undefined) return limits;
  return {
    ...limits,
    memoryOvercommit: own.memoryOvercommit ?? limits.memoryOvercommit,
    diskOvercommit: own.diskOvercommit ?? limits.diskOvercommit,
    nodeSandboxes: own.maxSandboxes ?? limits.nodeSandboxes,
  };
}

/** Why a site can't be used whatever it has room for; null when it can. */
export function whyUnusable({ node, storage, mounts }: Site): string | null {
  if (!node.online) return "offline";
  const inactive = [storage, ...mounts].find((one) => one !== "" && !storageOf(node, one)?.active);
  return inactive === undefined ? null : `storage ${inactive} is not active`;
}

/** What stands in the way of one more, and of how many more there is none. */
export interface Room {
  /** How many more of the demand fit; infinite where nothing is known to limit them. */
  more: number;
  /** What ends first, for people, such as `memory` or `disk of local-lvm`. */
  limit: string;
  /** Why there is no room for one. */
  reason: string;
}

/** How much room a site has: each limit by itself, the narrowest first. */
export function roomOf(site: Site, promises: Promises, limits: Overcommit): Room {
  const { node, demand } = site;
  const own = limitsOf(node, promises.settings, limits);
  const load = promises.loads.get(node.name) ?? NO_LOAD;
  let narrowest: Room = { more: Number.POSITIVE_INFINITY, limit: "nothing that is known", reason: "" };
  const limit = (free: number, each: number, what: string, reason: string) => {
    if (each <= 0) return;
    const more = Math.max(0, Math.floor(free / each));
    if (more < narrowest.more) narrowest = { more, limit: what, reason };
  };
  // 0: a token without the right to see it; PVE itself decides then.
  if (node.memoryBytes > 0) {
    const freeMib = (node.memoryBytes * own.memoryOvercommit - node.foreignMemoryBytes) / MIB - load.reservedMemoryMib;
    limit(freeMib, demand.memoryMib, "memory", `no memory left for ${demand.memoryMib} MiB`);
  }
  if (own.nodeSandboxes !== undefined) {
    const reason = `it has its ${own.nodeSandboxes} sandboxes`;
    limit(own.nodeSandboxes - load.sandboxes, 1, "number of sandboxes", reason);
  }
  for (const name in demand.disks) {
    const storage = storageOf(node, name);
    const gib = demand.disks[name] ?? 0;
    if (!storage || storage.totalBytes === 0) continue;
    const promised = promisedOn(node, storage, promises);
    const freeGib = (storage.totalBytes * own.diskOvercommit) / GIB - promised.diskGib;
    limit(freeGib, gib, `disk of ${name}`, `no disk left for ${gib} GiB on ${name}`);
    const freeBytes =
      (storage.totalBytes * own.storageFullPercent) / 100 - storage.usedBytes - promised.copyingGib * GIB;
    // What a linked clone writes later nobody knows, but none begins where there is nothing left.
    const writes = name === site.storage && demand.copiedGib > 0 ? demand.copiedGib * GIB : 0;
    const reason = `storage ${name} is over ${own.storageFullPercent} % full`;
    if (freeBytes < Math.max(writes, 1)) limit(0, 1, `space on ${name}`, reason);
    else limit(freeBytes, writes, `space on ${name}`, reason);
  }
  return narrowest;
}

/** Why a site has no room now; null when it has. */
export function whyNoRoom(site: Site, promises: Promises, limits: Overcommit): string | null {
  const { more, reason } = roomOf(site, promises, limits);
  return more >= 1 ? null : reason;
}

/** A shared storage is promised by all nodes that have it. */
function promisedOn(node: NodeInventory, storage: Storage, { loads, readAt }: Promises) {
  let diskGib = 0;
  let copyingGib = 0;
  const add = (load: NodeLoad | undefined) => {
    if (load === undefined) return;
    diskGib += (load.reservedDiskGib.get(storage.name) ?? 0) + (load.reservedDiskGib.get("") ?? 0);
    for (const { storage: on, gib, doneAt } of load.copies)
      if (on === storage.name && (doneAt === undefined || doneAt > readAt - UNCOUNTED_MS)) copyingGib += gib;
  };
  if (storage.shared) for (const load of loads.values()) add(load);
  else add(loads.get(node.name));
  return { diskGib, copyingGib };
}

/** Throws `invalid_input` when no site could ever take its sandbox, were it empty. What is not known of a site may fit. */
export function assertFitsSomewhere(sites: readonly Site[], settings: Promises["settings"], limits: Overcommit): void {
  let memory = false;
  let disk = false;
  for (const site of sites) {
    const most = mostOf(site, settings, limits);
    const hasMemory = site.demand.memoryMib <= most.memoryMib;
    const hasDisk = diskOf(site) <= most.diskGib;
    if (hasMemory && hasDisk) return;
    memory ||= hasMemory;
    disk ||= hasDisk;
  }
  const [first] = sites;
  if (!first) return;
  // Where each has a node and no node has both, the caller may change either.
  const either = memory && disk;
  const offers = sites.map((site) => ({ site, most: mostOf(site, settings, limits) }));
  const withMemory = offers.filter(({ site, most }) => site.demand.memoryMib <= most.memoryMib);
  const withDisk = offers.filter(({ site, most }) => diskOf(site) <= most.diskGib);
  const mostMemory = Math.max(...(either ? withDisk : offers).map(({ most }) => most.memoryMib));
  const mostDisk = Math.max(...(either ? withMemory : offers).map(({ most }) => most.diskGib));
  const problems = [
    ...(either || !memory ? [tooMuch("memoryMib", first.demand.memoryMib, mostMemory)] : []),
    ...(either || !disk ? [tooMuch("diskGib", diskOf(first), mostDisk)] : []),
  ];
  throw new FleetError("invalid_input", problems.map(({ text }) => text).join(either ? " or " : "; "), {
    facts: { fields: problems.map(({ field }) => field) },
  });
}

const diskOf = ({ demand, storage }: Site) => demand.disks[storage] ?? 0;

/** The largest sandbox that a site takes when it is empty. */
function mostOf({ node, storage }: Site, settings: Promises["settings"], limits: Overcommit) {
  const own = limitsOf(node, settings, limits);
  const total = storageOf(node, storage)?.totalBytes ?? 0;
  return {
    memoryMib:
      node.memoryBytes === 0 ? Number.POSITIVE_INFINITY : Math.floor((node.memoryBytes * own.memoryOvercommit) / MIB),
    diskGib: total === 0 ? Number.POSITIVE_INFINITY : Math.floor((total * own.diskOvercommit) / GIB),
  };
}

function tooMuch(field: "memoryMib" | "diskGib", wanted: number, most: number) {
  const what = field === "memoryMib" ? "" : " (template and mount points included)";
  return { field, text: `${field}: ${wanted}${what} fits on no node that has the template; the most is ${most}` };
}

export const storageOf = (node: NodeInventory, name: string) => node.storages.find((one) => one.name === name);
