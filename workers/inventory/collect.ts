/** Reading the cluster: nodes, capacity, storages, templates and their replicas, DNS search domains. */
import { FleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { Inventory, NodeInventory, Replica, Storage } from "../../shared/state/inventory.ts";
import type { Call, ClusterResource, LxcConfig, PveApi } from "../pve/api.ts";
import { parseMount, parseSizeMib, parseTags, storageOf } from "../pve/config-format.ts";

/** What changes rarely is read again after this long. */
const SLOW_MS = 60_000;

export interface Collector {
  collect(call: Call): Promise<Inventory>;
}

/** `vmids`: our own range; other guests' memory counts as foreign. */
export function createCollector(
  pve: PveApi,
  vmids: { first: number; last: number },
  now: () => number = Date.now,
): Collector {
  const configs = createCache<LxcConfig>(now);
  const searches = createCache<string>(now);
  const versions = createCache<string>(now);
  return {
    async collect(call) {
      const [resources, version] = await Promise.all([
        pve.clusterResources({}, call),
        versions.get("version", async () => (await pve.version(call)).version),
      ]);
      const nodes = await Promise.all(
        resources
          .filter(({ type }) => type === "node")
          .map((node) => toNode(node, resources, vmids, (name) => searchOf(pve, searches, name, call))),
      );
      const online = new Set(nodes.filter((one) => one.online).map(({ name }) => name));
      const templates = resources.filter((one) => one.type === "lxc" && one.template === true);
      const replicas = await Promise.all(
        templates.map(async (one) => {
          const { node, vmid } = one;
          if (node === undefined || vmid === undefined || !online.has(node)) return null;
          // A template's config changes only by hand; PVE's list tells us of a new name or lock at once.
          const config = await configs
            .get(`${node} ${vmid} ${one.name}`, () => pve.lxc(node, vmid).config(call))
            .catch(ignoreGone);
          return config ? toReplica({ node, vmid }, one, config, nodes) : null;
        }),
      );
      return { at: now(), version, nodes, replicas: replicas.filter((one) => one !== null) };
    },
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

/** The list lags: what it still shows may be gone, or out of our rights. */
function ignoreGone(error: unknown): null {
  if (error instanceof FleetError && ["container_missing", "forbidden", "node_unreachable"].includes(error.code))
    return null;
  throw error;
}

/** The node's DNS search domain; "" where there is none, it can't be asked, or the token may not. */
async function searchOf(
  pve: PveApi,
  cache: { get(key: string, read: () => Promise<string>): Promise<string> },
  node: NodeName,
  call: Call,
) {
  return cache.get(node, async () => {
    try {
      return (await pve.nodeDns(node, call)).search ?? "";
    } catch (error) {
      if (error instanceof FleetError && ["forbidden", "node_unreachable"].includes(error.code)) return "";
      throw error;
    }
  });
}

async function toNode(
  resource: ClusterResource,
  all: readonly ClusterResource[],
  vmids: { first: number; last: number },
  search: (node: NodeName) => Promise<string>,
): Promise<NodeInventory> {
  const name = resource.node;
  if (name === undefined) throw new FleetError("pve_bad_reply", "cluster/resources has a node without a name");
  const online = resource.status === "online";
  const foreign = all.filter(
    (one) =>
      (one.type === "lxc" || one.type === "qemu") &&
      one.node === name &&
      one.template !== true &&
      !isOurs(one.vmid, vmids) &&
      one.status === "running",
  );
  const dnsSearch = online ? await search(name) : "";
  return {
    name,
    online,
    cores: resource.maxcpu ?? 0,
    memoryBytes: resource.maxmem ?? 0,
    memoryUsedBytes: resource.mem ?? 0,
    cgroup: resource["cgroup-mode"] === 1 ? 1 : 2,
    ...(dnsSearch === "" ? {} : { dnsSearch }),
    storages: all.filter((one) => one.type === "storage" && one.node === name).map(toStorage),
    foreignMemoryBytes: foreign.reduce((sum, { maxmem }) => sum + (maxmem ?? 0), 0),
  };
}

const isOurs = (vmid: Vmid | undefined, { first, last }: { first: number; last: number }) =>
  vmid !== undefined && vmid >= first && vmid <= last;

function toStorage(resource: ClusterResource): Storage {
  return {
    name: resource.storage ?? "",
    type: resource.plugintype ?? "",
    shared: resource.shared === true,
    rootdir: (resource.content ?? "").split(",").includes("rootdir"),
    active: resource.status === "available",
    totalBytes: resource.maxdisk ?? 0,
    usedBytes: resource.disk ?? 0,
  };
}

function toReplica(
  place: { node: NodeName; vmid: Vmid },
  resource: ClusterResource,
  config: LxcConfig,
  nodes: readonly NodeInventory[],
): Replica {
  const rootfs = config.rootfs === undefined ? undefined : parseMount(config.rootfs);
  const storage = rootfs === undefined ? "" : (storageOf(rootfs.volume) ?? "");
  const shared = nodes.some(
    ({ name, storages }) => name === place.node && storages.some((one) => one.name === storage && one.shared),
  );
  return {
    ...place,
    name: resource.name ?? config.hostname ?? String(place.vmid),
    tags: parseTags(resource.tags ?? config.tags ?? ""),
    storage,
    shared,
    unprivileged: config.unprivileged === true,
    hookscript: config.hookscript !== undefined,
    diskBytes: rootfs?.size === undefined ? 0 : parseSizeMib(rootfs.size) * 1_048_576,
    memoryMib: config.memory ?? 512,
    locked: resource.lock !== undefined,
  };
}
