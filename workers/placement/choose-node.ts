/** Which node a provision goes to: pure; everything it knows is passed in. */

import type { WorkerConfig } from "../../shared/config.ts";
import { FleetError } from "../../shared/errors.ts";
import { type NodeName, SnapshotId } from "../../shared/ids.ts";
import type { ProvisionInput } from "../../shared/jobs/provision.ts";
import type { Inventory, NodeInventory, Replica } from "../../shared/state/inventory.ts";
import type { SnapshotRecord } from "../../shared/state/records.ts";

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

export interface PlacementLimits {
  slots: number;
  memoryOvercommit: number;
  diskOvercommit: number;
  allowPrivileged: boolean;
}

export interface PlacementRequest {
  input: ProvisionInput;
  /** When the template is a snapshot taken through the fleet. */
  snapshot: SnapshotRecord | null;
}

/** What one sandbox takes of its node. */
export interface Demand {
  memoryMib: number;
  diskGib: number;
}

export type Placement =
  | { node: NodeName; demand: Demand }
  /** `blocked`: some other operation could be placed now, so this one must not hold up the line. */
  | { wait: true; reason: string; blocked: boolean };

/** The input with the configuration's node, and its storage where a full clone lets one choose. Pure. */
export function withDefaults(
  input: ProvisionInput,
  config: Pick<WorkerConfig, "PVE_NODE" | "PVE_STORAGE">,
): ProvisionInput {
  const full =
    input.clone === "full" || input.sourceSnapshot !== undefined || SnapshotId.safeParse(input.template).success;
  const node = input.node ?? config.PVE_NODE;
  const storage = input.storage ?? (full ? config.PVE_STORAGE : undefined);
  return { ...input, ...(node === undefined ? {} : { node }), ...(storage === undefined ? {} : { storage }) };
}

/** One job of prefetch a node: a freed slot never waits for the placer. */
const PREFETCH = 1;

/**
 * Picks the node with the fewest jobs for its slots among those that are online, hold a source and have room.
 * Throws what will not heal: `template_not_found`, `privileged_template`, `linked_clone_unsupported`, `storage_not_found`, `invalid_input`.
 */
export function chooseNode(
  request: PlacementRequest,
  inventory: Inventory,
  loads: ReadonlyMap<string, NodeLoad>,
  limits: PlacementLimits,
): Placement {
  const sources = findSources(request, inventory, limits);
  const { input } = request;
  if (input.node !== undefined && !inventory.nodes.some(({ name }) => name === input.node)) {
    throw invalid(
      "node",
      `there is no node ${input.node}; nodes are ${inventory.nodes.map(({ name }) => name).join(", ")}`,
    );
  }
  // One that no node has will not come by waiting; one that is only inactive may.
  const storages = new Set(inventory.nodes.flatMap((node) => node.storages.map(({ name }) => name)));
  if (input.storage !== undefined && !storages.has(input.storage)) {
    throw new FleetError(
      "storage_not_found",
      `there is no storage ${input.storage}; storages are ${[...storages].join(", ")}`,
      { facts: { storage: input.storage } },
    );
  }
  const refusals = new Map<string, string>();
  const candidates: { node: NodeInventory; load: NodeLoad; demand: Demand }[] = [];
  let busy = 0;
  for (const node of inventory.nodes) {
    if (input.node !== undefined && node.name !== input.node) continue;
    const source = sources.find((one) => canCloneTo(one, node, input));
    if (!source) continue;
    const load = loads.get(node.name) ?? { jobs: 0, reservedMemoryMib: 0, reservedDiskGib: 0 };
    const demand = demandOf(input, source);
    const refusal = whyNot(node, load, demand, { source, input, limits });
    if (refusal) refusals.set(node.name, refusal);
    else if (load.jobs >= limits.slots + PREFETCH) busy += 1;
    else candidates.push({ node, load, demand });
  }
  const [best] = candidates.sort(
    (a, b) =>
      a.load.jobs - b.load.jobs ||
      share(a.load, a.node) - share(b.load, b.node) ||
      (a.node.name < b.node.name ? -1 : 1),
  );
  if (best) return { node: best.node.name, demand: best.demand };
  const reasons = [...refusals].map(([node, why]) => `${node}: ${why}`);
  if (busy > 0) reasons.unshift(`all slots of ${busy} node(s) are busy`);
  if (reasons.length === 0) reasons.push("no online node has the template");
  const [source] = sources;
  const demand = source ? demandOf(input, source) : { memoryMib: 0, diskGib: 0 };
  const blocked = inventory.nodes.some((node) => isFree(node, loads.get(node.name), demand, limits));
  return { wait: true, reason: reasons.join("; "), blocked };
}

/** Whether a node could take a sandbox of this size now, had it the source. */
function isFree(node: NodeInventory, load: NodeLoad | undefined, demand: Demand, limits: PlacementLimits): boolean {
  if (!node.online || (load?.jobs ?? 0) >= limits.slots + PREFETCH) return false;
  return hasMemory(node, load?.reservedMemoryMib ?? 0, demand, limits);
}

function hasMemory(node: NodeInventory, reservedMib: number, demand: Demand, limits: PlacementLimits): boolean {
  return (reservedMib + demand.memoryMib) * MIB + node.foreignMemoryBytes <= node.memoryBytes * limits.memoryOvercommit;
}

const share = (load: NodeLoad, node: NodeInventory) => (load.reservedMemoryMib * MIB) / Math.max(1, node.memoryBytes);

/** Where the container comes from. */
export type Source = Pick<
  Replica,
  "vmid" | "node" | "storage" | "shared" | "unprivileged" | "hookscript" | "diskBytes" | "memoryMib"
> & {
  linkable: boolean;
};

/** All sources of a request, whether usable just now or not. */
export function findSources(
  request: PlacementRequest,
  inventory: Inventory,
  limits: Pick<PlacementLimits, "allowPrivileged">,
): Source[] {
  const { input, snapshot } = request;
  if (snapshot) return [sourceOfSnapshot(snapshot, inventory)];
  const wanted = input.template;
  const replicas = inventory.replicas.filter((one) =>
    typeof wanted === "number" ? one.vmid === wanted : one.name === wanted || one.tags.includes(wanted),
  );
  if (replicas.length === 0) {
    const known = [...new Set(inventory.replicas.map(({ name }) => name))].sort().join(", ") || "none";
    throw new FleetError("template_not_found", `there is no template ${wanted}; templates are: ${known}`, {
      facts: { template: String(wanted) },
    });
  }
  const allowed = replicas.filter(({ unprivileged }) => unprivileged || limits.allowPrivileged);
  if (allowed.length === 0) {
    throw new FleetError(
      "privileged_template",
      `template ${wanted} is privileged; convert it, or set PVE_ALLOW_PRIVILEGED=1`,
      { facts: { template: String(wanted) } },
    );
  }
  const sources = allowed.map((one) => ({ ...one, linkable: canLink(storageType(inventory, one.node, one.storage)) }));
  if (input.clone === "linked" && input.sourceSnapshot === undefined && !sources.some(({ linkable }) => linkable)) {
    throw new FleetError(
      "linked_clone_unsupported",
      `storage ${sources[0]?.storage} of template ${wanted} can't clone linked; ask for clone: "full" or "linked_or_full"`,
      {
        facts: { template: String(wanted), storage: sources[0]?.storage ?? null },
      },
    );
  }
  return sources;
}

function sourceOfSnapshot(snapshot: SnapshotRecord, inventory: Inventory): Source {
  return {
    vmid: snapshot.vmid,
    node: snapshot.node,
    storage: "",
    shared: false,
    unprivileged: true,
    hookscript: inventory.replicas.some(({ hookscript }) => hookscript),
    diskBytes: 0,
    memoryMib: 512,
    linkable: false,
  };
}

/** Source: PVE::Storage plugins, feature "clone". */
const canLink = (type: string | undefined) => ["lvmthin", "zfspool", "rbd", "btrfs"].includes(type ?? "");

const storageType = (inventory: Inventory, node: string, storage: string) =>
  inventory.nodes.find(({ name }) => name === node)?.storages.find(({ name }) => name === storage)?.type;

/** Whether a clone of this source is linked: what was asked for, where its storage can. */
export function isLinked(input: ProvisionInput, source: Source): boolean {
  return input.clone !== "full" && input.sourceSnapshot === undefined && source.linkable && input.storage === undefined;
}

export function canCloneTo(source: Source, node: NodeInventory, input: ProvisionInput): boolean {
  if (input.clone === "linked" && input.sourceSnapshot === undefined && source.storage !== "" && !source.linkable)
    return false;
  return (
    source.node === node.name ||
    (source.shared && node.storages.some(({ name, active }) => name === source.storage && active))
  );
}

export function demandOf(input: ProvisionInput, source: Source): Demand {
  const mounts = input.mountPoints.reduce((sum, { sizeGib }) => sum + sizeGib, 0);
  return {
    memoryMib: input.memoryMib ?? source.memoryMib,
    diskGib: Math.max(input.diskGib ?? 0, Math.ceil(source.diskBytes / GIB)) + mounts,
  };
}

function whyNot(
  node: NodeInventory,
  load: NodeLoad,
  demand: Demand,
  { source, input, limits }: { source: Source; input: ProvisionInput; limits: PlacementLimits },
): string | null {
  if (!node.online) return "offline";
  if (!hasMemory(node, load.reservedMemoryMib, demand, limits)) return `no memory left for ${demand.memoryMib} MiB`;
  const target = input.storage ?? source.storage;
  const storage = node.storages.find(({ name }) => name === target);
  if (target !== "" && !storage?.active) return `storage ${target} is not active`;
  if (storage && (load.reservedDiskGib + demand.diskGib) * GIB > storage.totalBytes * limits.diskOvercommit)
    return `no disk left for ${demand.diskGib} GiB on ${target}`;
  if (storage && storage.usedBytes > storage.totalBytes * 0.95) return `storage ${target} is over 95 % full`;
  return null;
}

function invalid(field: string, text: string): FleetError {
  return new FleetError("invalid_input", `${field}: ${text}`, { facts: { fields: [field] } });
}
