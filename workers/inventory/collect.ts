/** Reading the cluster: nodes, capacity, storages, templates and their replicas, DNS search domains. */
import { createHash } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import { MIB } from "../../shared/placement/capacity.ts";
import type { AdoptableContainer, Inventory, NodeInventory, Replica, Storage } from "../../shared/state/inventory.ts";
import type { Call, ClusterResource, LxcConfig, PveApi } from "../pve/api.ts";
import { parseMount, parseSizeMib, parseTags, storageOf } from "../pve/config-format.ts";
import { parseStamp } from "../sandbox/stamp.ts";

/** What changes rarely is read again after this long. */
const SLOW_MS = 60_000;
/** A node that hangs must not hold up the reading of the others. */
const NODE_DEADLINE_MS = 5_000;

export interface Collector {
  /** `before`: the last reading, this worker's or another's; what can't be asked now is taken over from it. */
  collect(call: Call, before: Inventory | null): Promise<Inventory>;
}

export interface CollectorOptions {
  /** Our own range; other guests' memory counts as foreign. */
  vmids: { first: number; last: number };
  /** Whether the fleet itself clones from this template just now. */
  isCloning: (node: NodeName, vmid: Vmid) => Promise<boolean>;
  /** VMIDs that sandboxes of ours have, also outside the range. */
  leased: () => Promise<readonly string[]>;
  /** Of host names of containers that may be adopted. */
  prefixes: readonly string[];
  /** For producers, who have no such settings of their own. */
  urls: NonNullable<Inventory["urls"]>;
  limits: NonNullable<Inventory["limits"]>;
  now?: () => number;
}

export function createCollector(
  pve: PveApi,
  { vmids, isCloning, leased, prefixes, urls, limits, now = Date.now }: CollectorOptions,
): Collector {
  const configs = createCache<LxcConfig>(now);
  const searches = createCache<string>(now);
  const versions = createCache<string>(now);
  return {
    async collect(call, before) {
      const ofNode = { ...call, deadlineMs: NODE_DEADLINE_MS };
      const [resources, version, own] = await Promise.all([
        pve.clusterResources({}, call),
        versions.get("version", async () => (await pve.version(call)).version),
        leased(),
      ]);
      const owned = new Set(own.map(Number));
      const search = (name: NodeName) => searchOf(pve, searches, name, ofNode);
      const nodes = await Promise.all(
        resources
          .filter(({ type }) => type === "node")
          .map((node) => toNode(node, resources, { vmids, owned, search, before: before?.nodes ?? [] })),
      );
      const readConfig = (node: NodeName, vmid: Vmid, name: string | undefined) =>
        // A template's config changes only by hand; PVE's list tells us of a new name or lock at once.
        configs.get(`${node} ${vmid} ${name}`, () => pve.lxc(node, vmid).config(ofNode));
      // Each of our own clones locks its source for a moment: a template that were passed over for that until the next
      // reading would leave the others with its work.
      const isLocked = async (node: NodeName, vmid: Vmid, lock: string | undefined) => {
        if (lock !== "disk") return lock !== undefined;
        if (await isCloning(node, vmid)) return false;
        const live = await pve.lxc(node, vmid).config(ofNode);
        return live.lock !== undefined && !(await isCloning(node, vmid));
      };
      const guests = resources.filter(({ type }) => type === "lxc");
      const replicas = await Promise.all(
        guests.map((one) => replicaOf(one, { nodes, vmids, before, readConfig, isLocked })),
      );
      call.signal.throwIfAborted(); // it may have been the reason why nodes did not tell
      const containers = guests.flatMap((one) => toAdoptable(one, owned, prefixes));
      return {
        at: now(),
        urls,
        limits,
        version,
        nodes,
        replicas: replicas.filter((one) => one !== null),
        adoptable: { prefixes: [...prefixes], containers },
      };
    },
  };
}

interface Reading {
  nodes: readonly NodeInventory[];
  vmids: { first: number; last: number };
  before: Inventory | null;
  readConfig(node: NodeName, vmid: Vmid, name: string | undefined): Promise<LxcConfig>;
  /** By somebody else than the fleet's own clones. */
  isLocked(node: NodeName, vmid: Vmid, lock: string | undefined): Promise<boolean>;
}

/** The guest as a replica, the last known one where its node can't be asked; null when it is no template. */
async function replicaOf(guest: ClusterResource, reading: Reading): Promise<Replica | null> {
  const { node, vmid } = guest;
  if (node === undefined || vmid === undefined || guest.template === false) return null;
  const known = reading.before?.replicas.find((one) => one.node === node && one.vmid === vmid);
  if (!reading.nodes.some(({ name, online }) => name === node && online)) {
    return asLastSeen({ ...guest, node, vmid }, known, reading.vmids);
  }
  // Of a node that has just come back the list says neither name nor kind for some seconds.
  if (guest.template === undefined && !known) return null;
  try {
    const config = await reading.readConfig(node, vmid, guest.name);
    const isTemplate = guest.template === true || config.template === true;
    if (!isTemplate) return null;
    const locked = await reading.isLocked(node, vmid, guest.lock);
    return { ...toReplica({ node, vmid }, guest, config, reading.nodes), locked };
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    // The list lags: what it still shows may be gone, or out of our rights.
    if (error.code === "container_missing" || error.code === "forbidden") return null;
    // Whatever ails this node, such as a pmxcfs that is down there: the others are read all the same.
    return asLastSeen({ ...guest, node, vmid }, known, reading.vmids);
  }
}

/**
 * A template that can't be used now but is there: PVE lists the guests of a node that is down with VMID and tags, and
 * often without name and kind. A stranger's guest of unknown kind may be one; waiting for its node tells.
 */
function asLastSeen(
  guest: ClusterResource & { node: NodeName; vmid: Vmid },
  known: Replica | undefined,
  vmids: { first: number; last: number },
): Replica | null {
  const locked = guest.lock !== undefined;
  if (known) return { ...known, locked, online: false };
  if (guest.template !== true && isOurs(guest.vmid, vmids)) return null;
  return {
    node: guest.node,
    vmid: guest.vmid,
    name: guest.name ?? String(guest.vmid),
    tags: parseTags(guest.tags ?? ""),
    storage: "",
    shared: false,
    unprivileged: true, // looked at again before it is cloned
    hookscript: false,
    diskBytes: 0,
    memoryMib: 512,
    locked,
    online: false,
  };
}

function createCache<T>(now: () => number) {
  const known = new Map<string, { value: T; until: number }>();
  return {
    async get(key: string, read: () => Promise<T>): Promise<T> {
      const hit = known.get(key);
      if (hit && hit.until > now()) return hit.value;
      const value = await read();
      known.set(key, { value, until: now() + SLOW_MS });
      return value;
    },
  };
}

/** The node's DNS search domain; "" where there is none or the token may not ask, undefined where the node does not tell. */
async function searchOf(
  pve: PveApi,
  cache: { get(key: string, read: () => Promise<string>): Promise<string> },
  node: NodeName,
  call: Call,
): Promise<string | undefined> {
  try {
    return await cache.get(node, async () => (await pve.nodeDns(node, call)).search ?? "");
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    return error.code === "forbidden" ? "" : undefined;
  }
}

async function toNode(
  resource: ClusterResource,
  all: readonly ClusterResource[],
  {
    vmids,
    owned,
    search,
    before,
  }: {
    vmids: { first: number; last: number };
    owned: ReadonlySet<number>;
    search: (node: NodeName) => Promise<string | undefined>;
    before: readonly NodeInventory[];
  },
): Promise<NodeInventory> {
  const name = resource.node;
  if (name === undefined) throw new FleetError("pve_bad_reply", "cluster/resources has a node without a name");
  const online = resource.status === "online";
  // Of a node that is down PVE says no sizes; it will be as large when it is back.
  const last = before.find((one) => one.name === name);
  const foreign = all.filter(
    (one) =>
      (one.type === "lxc" || one.type === "qemu") &&
      one.node === name &&
      one.template !== true &&
      !isOurs(one.vmid, vmids) &&
      !owned.has(one.vmid ?? 0) &&
      one.status === "running",
  );
  const dnsSearch = (online ? await search(name) : undefined) ?? last?.dnsSearch ?? "";
  const cgroup = resource["cgroup-mode"] ?? last?.cgroup;
  return {
    name,
    online,
    cores: resource.maxcpu ?? last?.cores ?? 0,
    memoryBytes: resource.maxmem ?? last?.memoryBytes ?? 0,
    memoryUsedBytes: resource.mem ?? 0,
    cgroup: cgroup === 1 ? 1 : 2,
    ...(dnsSearch === "" ? {} : { dnsSearch }),
    storages: all
      .filter((one) => one.type === "storage" && one.node === name)
      .map((one) => toStorage(one, last?.storages ?? [])),
    foreignMemoryBytes: foreign.reduce((sum, { maxmem }) => sum + (maxmem ?? 0), 0),
  };
}

/** One without a name has only just come, or its node can't tell. */
function toAdoptable(
  { node, vmid, name, status = "unknown", template, lock }: ClusterResource,
  owned: ReadonlySet<number>,
  prefixes: readonly string[],
): AdoptableContainer[] {
  if (node === undefined || vmid === undefined || template === true || owned.has(vmid)) return [];
  if (name === undefined || !prefixes.some((prefix) => name.startsWith(prefix))) return [];
  return [{ node, vmid, name, status, ...(lock === undefined ? {} : { lock }) }];
}

const isOurs = (vmid: Vmid | undefined, { first, last }: { first: number; last: number }) =>
  vmid !== undefined && vmid >= first && vmid <= last;

function toStorage(resource: ClusterResource, before: readonly Storage[]): Storage {
  const last = before.find(({ name }) => name === resource.storage);
  const active = resource.status === "available";
  const contents = (resource.content ?? "").split(",");
  return {
    name: resource.storage ?? "",
    type: resource.plugintype ?? last?.type ?? "",
    shared: resource.shared ?? last?.shared ?? false,
    rootdir: contents.includes("rootdir"),
    backup: contents.includes("backup"),
    active,
    // An inactive one is said to hold 0 bytes.
    totalBytes: active ? (resource.maxdisk ?? 0) : resource.maxdisk || last?.totalBytes || 0,
    usedBytes: resource.disk ?? 0,
  };
}

/** Without what changes while it is cloned, and what people write. */
export function hashConfig({ digest: _, lock: __, description: ___, ...config }: LxcConfig): string {
  const text = JSON.stringify(Object.entries(config).sort(([a], [b]) => (a < b ? -1 : 1)));
  return createHash("sha256").update(text).digest("base64url").slice(0, 12);
}

export function toReplica(
  place: { node: NodeName; vmid: Vmid },
  resource: Pick<ClusterResource, "name" | "tags">,
  config: LxcConfig,
  nodes: readonly NodeInventory[],
): Omit<Replica, "locked"> {
  const rootfs = config.rootfs === undefined ? undefined : parseMount(config.rootfs);
  const storage = rootfs === undefined ? "" : (storageOf(rootfs.volume) ?? "");
  const shared = nodes.some(
    ({ name, storages }) => name === place.node && storages.some((one) => one.name === storage && one.shared),
  );
  const stamp = parseStamp(config.description, place.vmid);
  return {
    ...place,
    ...(stamp === null ? {} : { owner: { sandbox: stamp.sandbox, team: stamp.team } }),
    ...(stamp?.copyOf === undefined ? {} : { copyOf: stamp.copyOf }),
    name: resource.name ?? config.hostname ?? String(place.vmid),
    tags: parseTags(resource.tags ?? config.tags ?? ""),
    storage,
    shared,
    unprivileged: config.unprivileged === true,
    hookscript: config.hookscript !== undefined,
    diskBytes: rootfs?.size === undefined ? 0 : parseSizeMib(rootfs.size) * MIB,
    configHash: hashConfig(config),
    memoryMib: config.memory ?? 512,
    online: true,
  };
}
