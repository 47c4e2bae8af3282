/** Which node a provision goes to: pure; everything it knows is passed in. */

import type { WorkerConfig } from "../config.ts";
import { FleetError } from "../errors.ts";
import type { NodeName } from "../ids.ts";
import type { ProvisionInput } from "../jobs/provision.ts";
import { grant } from "../pve-grant.ts";
import type { Inventory, NodeInventory, PlacementLimits, Replica } from "../state/inventory.ts";
import type { SnapshotRecord } from "../state/records.ts";
import {
  assertFitsSomewhere,
  type Demand,
  GIB,
  MIB,
  NO_LOAD,
  type NodeLoad,
  type Promises,
  type Site,
  whyNoRoom,
  whyUnusable,
} from "./capacity.ts";

export interface PlacementRequest {
  input: PlacedInput;
  /** The group that it keeps away from others of; see `antiAffinity` of a provision. */
  group?: string | undefined;
  /** When the template is a snapshot taken through the fleet. */
  snapshot: SnapshotRecord | null;
  /** The node that refused it just now; it is left alone where there is any other. */
  avoid: NodeName | undefined;
}

/**
 * Why there is no node yet, and so who must wait:
 * - `line`: no node has a free slot, nobody could be placed; the head of the line keeps its place for as long as it takes.
 * - `room`: nodes with free slots have no memory or disk left for it; others may be smaller.
 * - `aside`: the nodes in question are busy, offline, cordoned or without the template; others may not need them.
 */
export type Placement =
  | { node: NodeName; storage: string; demand: Demand }
  | { wait: "line" | "room" | "aside"; reason: string };

/** An input as it is placed. `defaultStorage`: where a full clone goes that names no storage itself. */
export type PlacedInput = ProvisionInput & { defaultStorage?: string | undefined };

/** The input with the configuration's node, and its storage for a clone that turns out to be full. Pure. */
export function withDefaults(
  input: ProvisionInput,
  config: Pick<WorkerConfig, "PVE_NODE" | "PVE_STORAGE">,
): PlacedInput {
  const node = input.node ?? config.PVE_NODE;
  return { ...input, ...(node === undefined ? {} : { node }), defaultStorage: config.PVE_STORAGE };
}

/**
 * Picks the node that has least to do and most room, or is fullest, among those that are online, hold a source and have room.
 * `obstacles`: why a node is left out, which is no place then and no source either.
 * Throws what will not heal: `template_not_found`, `privileged_template`, `linked_clone_unsupported`, `storage_not_found`,
 * `forbidden` (a storage that the token does not see), `invalid_input` (a node that there is not, or more than any node has).
 */
export function chooseNode(
  request: PlacementRequest,
  inventory: Inventory,
  facts: NodeFacts,
  limits: PlacementLimits,
): Placement {
  const { loads, obstacles } = facts;
  const { input, group } = request;
  const places = findPlaces(request, inventory, facts, limits);
  const promises = { ...facts, readAt: inventory.at };
  const refusals: string[] = [];
  let best: Candidate | undefined;
  let busy = 0;
  let short = false;
  for (const place of places) {
    const load = loads.get(place.node.name) ?? NO_LOAD;
    const near = group === undefined ? 0 : (load.groups.get(group) ?? 0);
    const noRoom = whyNoRoom(place, promises, limits);
    const avoided = place.node.name === request.avoid && places.length > 1 ? "it refused this one just now" : null;
    const crowded = near > 0 && input.antiAffinity?.mode === "require" ? "it has one of the same group" : null;
    const refusal =
      obstacles.get(place.node.name) ?? place.sourceProblem ?? whyUnusable(place) ?? avoided ?? crowded ?? noRoom;
    if (refusal) refusals.push(`${place.node.name}: ${refusal}`);
    else if (isBusy(load, limits)) busy += 1;
    else {
      const candidate = { place, near, share: share(load, place.node), weight: loadWeight(load, place.node) };
      if (best === undefined || isBetter(candidate, best, limits.policy)) best = candidate;
    }
    short ||= refusal !== null && refusal === noRoom && !isBusy(load, limits);
  }
  if (best) return { node: best.place.node.name, storage: best.place.storage, demand: best.place.demand };
  if (busy > 0) refusals.unshift(`all slots of ${busy} node(s) are busy`);
  const reason = refusals.join("; ") || "no online node has the template";
  if (isEveryNodeBusy(inventory, facts, limits)) return { wait: "line", reason };
  return { wait: short ? "room" : "aside", reason };
}

interface Candidate {
  place: Place;
  /** Others of its group that are there. */
  near: number;
  /** Of the node's memory that is promised. */
  share: number;
  weight: number;
}

/** A job in a node's queue weighs as much as so much of its memory: clones of one template wait for each other. */
const JOB_SHARE = 0.06;

/** `spread`: the node with the least to do and the most room; `pack`: the fullest, so that others stay free for large ones. */
function isBetter(a: Candidate, b: Candidate, policy: PlacementLimits["policy"]): boolean {
  const order =
    a.near - b.near ||
    (policy === "pack" ? b.share - a.share : a.weight - b.weight) ||
    (a.place.node.name < b.place.node.name ? -1 : 1);
  return order < 0;
}

/**
 * All nodes that the request may go to now or later, at least one, each with what it would take there.
 * Throws what will not heal: see `chooseNode`.
 */
export function findPlaces(
  request: Pick<PlacementRequest, "input" | "snapshot">,
  inventory: Inventory,
  { obstacles, settings }: Omit<NodeFacts, "loads">,
  limits: PlacementLimits,
): Place[] {
  const { input } = request;
  const sources = findSources(request, inventory, limits).map((one) => asSeen(one, obstacles));
  assertKnown(input, inventory, sources);
  const places = labeled(placesOf(input, inventory, sources), input, settings);
  assertInReach(input, places, sources);
  assertFitsSomewhere(places, settings, limits);
  return places;
}

/** Those of the places that carry the labels asked for. Throws `invalid_input` when there were places and none does. */
function labeled(
  places: Place[],
  { nodeLabels = [], template }: PlacedInput,
  settings: NodeFacts["settings"],
): Place[] {
  if (nodeLabels.length === 0 || places.length === 0) return places;
  const labelsOf = (place: Place) => settings.get(place.node.name)?.labels ?? [];
  const fitting = places.filter((place) => nodeLabels.every((label) => labelsOf(place).includes(label)));
  if (fitting.length > 0) return fitting;
  const known = [...new Set(places.flatMap(labelsOf))].sort().join(", ") || "none";
  throw new FleetError(
    "invalid_input",
    `nodeLabels: no node with a source of ${template} carries ${nodeLabels.join(", ")}; labels of those nodes are ${known} (fleet node set)`,
    { facts: { fields: ["nodeLabels"], labels: nodeLabels } },
  );
}

/** A node that the sandbox could stand on, and whether its source can be cloned now. */
export interface Place extends Site {
  /** Why its source can't be cloned now; null when it can. */
  sourceProblem: string | null;
}

/** What is true of the nodes now. */
export interface NodeFacts extends Omit<Promises, "readAt"> {
  obstacles: ReadonlyMap<string, string>;
}

type SeenSource = Source & { problem: string | null };

/** A source on a node that is left out can't be used either, as if that node were offline. */
function asSeen(source: Source, obstacles: ReadonlyMap<string, string>): SeenSource {
  const obstacle = obstacles.get(source.node);
  if (obstacle === undefined)
    return { ...source, problem: source.online ? null : "the template's node is offline, or can't read it" };
  return { ...source, online: false, problem: `the template's node ${source.node}: ${obstacle}` };
}

/** No job waits in a node's queue for its slot: it would start there after others whose turn comes first. */
const isBusy = (load: NodeLoad, { slots }: PlacementLimits) => load.jobs >= slots;

/** How much a node has to do and has promised: the lower, the better. */
export const loadWeight = (load: NodeLoad, node: NodeInventory) => share(load, node) + load.jobs * JOB_SHARE;

const share = (load: NodeLoad, node: NodeInventory) => (load.reservedMemoryMib * MIB) / Math.max(1, node.memoryBytes);

/** All nodes that the request may go to, as far as their sources and not their state decide. */
function placesOf(input: PlacedInput, inventory: Inventory, sources: readonly SeenSource[]): Place[] {
  return inventory.nodes
    .filter(({ name }) => input.node === undefined || name === input.node)
    .flatMap((node) => {
      const near = sources.filter((one) => isInReach(one, node, input));
      const source = near.find((one) => canCloneTo(one, node, input)) ?? near[0];
      if (!source) return [];
      const storage = targetStorage(input, source);
      const mounts = input.mountPoints.map((mount) => mount.storage);
      return [{ node, storage, mounts, demand: demandOf(input, source, storage), sourceProblem: source.problem }];
    });
}

/** A node that has no source, or whose nodes with a source lack the storage, will not get them by waiting. */
function assertInReach(input: ProvisionInput, places: readonly Place[], sources: readonly Source[]): void {
  if (places.length === 0) {
    const having = [...new Set(sources.map(({ node }) => node))].join(", ");
    throw new FleetError(
      "invalid_input",
      `node: ${input.node ?? "none"} has no source of ${input.template}; nodes that have one are ${having}`,
      { facts: { fields: ["node"] } },
    );
  }
  // A node that lists no storage could not be asked.
  const lacks = ({ node, storage, mounts }: Place) =>
    node.storages.length === 0
      ? undefined
      : [storage, ...mounts].find((one) => one !== "" && !node.storages.some(({ name }) => name === one));
  const [storage] = places.map(lacks);
  if (storage === undefined || places.some((place) => lacks(place) === undefined)) return;
  throw new FleetError("storage_not_found", `no node with a source of ${input.template} has storage ${storage}`, {
    facts: { storage },
  });
}

/** Whether nobody could be placed. A node without template and sandbox, such as one that is there for the quorum, is no place. */
function isEveryNodeBusy(inventory: Inventory, { loads, obstacles }: NodeFacts, limits: PlacementLimits): boolean {
  const takers = inventory.nodes.filter(
    (node) =>
      node.online &&
      !obstacles.has(node.name) &&
      ((loads.get(node.name)?.reservedMemoryMib ?? 0) > 0 ||
        inventory.replicas.some((one) => one.online && reaches(one, node))),
  );
  return takers.length > 0 && takers.every(({ name }) => isBusy(loads.get(name) ?? NO_LOAD, limits));
}

/** A node or a storage that no node has will not come by waiting; one that is only offline or inactive may. */
function assertKnown(input: PlacedInput, inventory: Inventory, sources: readonly Source[]): void {
  const names = inventory.nodes.map(({ name }) => name);
  if (input.node !== undefined && !names.includes(input.node)) {
    throw new FleetError("invalid_input", `node: there is no node ${input.node}; nodes are ${names.join(", ")}`, {
      facts: { fields: ["node"] },
    });
  }
  const storages = new Set(inventory.nodes.flatMap((node) => node.storages.map(({ name }) => name)));
  const mayBeFull = sources.some((source) => !isLinked(input, source));
  const root = input.storage ?? (mayBeFull ? input.defaultStorage : undefined);
  const unknown = [root, ...input.mountPoints.map(({ storage }) => storage)].find(
    (one) => one !== undefined && !storages.has(one),
  );
  if (unknown !== undefined) {
    throw new FleetError(
      "storage_not_found",
      `there is no storage ${unknown}; storages are ${[...storages].join(", ")}`,
      {
        facts: { storage: unknown },
      },
    );
  }
}

/** Where the container comes from. */
export type Source = Pick<
  Replica,
  | "vmid"
  | "node"
  | "storage"
  | "shared"
  | "unprivileged"
  | "hookscript"
  | "diskBytes"
  | "memoryMib"
  | "online"
  | "locked"
  | "configHash"
  | "copyOf"
> & {
  linkable: boolean;
};

/** All sources of a request, whether usable just now or not. */
export function findSources(
  request: Pick<PlacementRequest, "input" | "snapshot">,
  inventory: Inventory,
  limits: Pick<PlacementLimits, "allowPrivileged">,
): Source[] {
  const { input, snapshot } = request;
  if (snapshot) return [sourceOfSnapshot(snapshot, inventory)];
  const wanted = input.template;
  const originals = inventory.replicas.filter((one) => one.copyOf === undefined || isLast(one, inventory));
  const named = originals.filter((one) =>
    typeof wanted === "number"
      ? one.vmid === wanted
      : one.name === wanted || one.tags.includes(wanted) || one.owner?.sandbox === wanted || isVersion(one, wanted),
  );
  // The team's own comes before others of that name, and is no replica of theirs nor of its predecessors.
  const own = named.find(({ owner }) => owner !== undefined);
  const chosen = own === undefined ? named : [own];
  const replicas = [...chosen, ...copiesOf(chosen, inventory)];
  if (replicas.length === 0) throw notFound(wanted, inventory);
  const allowed = replicas.filter(({ unprivileged }) => unprivileged || limits.allowPrivileged);
  if (allowed.length === 0) {
    throw new FleetError(
      "privileged_template",
      `template ${wanted} is privileged; convert it, or set PVE_ALLOW_PRIVILEGED=1`,
      { facts: { template: String(wanted) } },
    );
  }
  assertStorageSeen(allowed, inventory, wanted);
  const sources = allowed.map((one) => {
    const type = storageType(inventory, one.node, one.storage);
    // What can't be asked now may well be able to.
    return { ...one, linkable: canLink(type) || (!one.online && !type) };
  });
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

/** Replicas that the fleet made of these, as they are now: of one that has changed they are of no use. */
function copiesOf(originals: readonly Replica[], inventory: Inventory): Replica[] {
  const isCurrent = ({ copyOf }: Replica) =>
    originals.some(
      ({ vmid, configHash }) => copyOf?.vmid === vmid && (configHash === undefined || configHash === copyOf.configHash),
    );
  return inventory.replicas.filter((one) => isCurrent(one) && !originals.includes(one));
}

/** What it was made of has gone, and it stands for that. */
const isLast = ({ copyOf }: Replica, { replicas }: Inventory): boolean =>
  !replicas.some(({ vmid }) => vmid === copyOf?.vmid);

/** NAME:VERSION, of which a template has the tag NAME-VERSION. */
function isVersion({ name, tags }: Replica, wanted: string): boolean {
  return wanted.startsWith(`${name}:`) && tags.includes(wanted.replace(":", "-"));
}

function notFound(wanted: ProvisionInput["template"], inventory: Inventory): FleetError {
  // Guests of which nothing but the VMID is known are no help to people.
  const named = inventory.replicas.filter(({ name, vmid }) => name !== String(vmid));
  const byId = typeof wanted === "number";
  const known = [...new Set(named.map(({ name, vmid }) => (byId ? `${name} (${vmid})` : name)))].sort();
  const problem = byId ? `VMID ${wanted} is no template that the token sees` : `there is no template ${wanted}`;
  const wayOut =
    inventory.replicas.length > 0
      ? `templates are: ${known.join(", ") || "none"}`
      : `the token sees no template at all; those there are need VM.Audit: ${grant("/vms", "VM.Audit")}`;
  return new FleetError("template_not_found", `${problem}; ${wayOut}`, { facts: { template: String(wanted) } });
}

/** What can't be seen of a storage would look like a storage that can do nothing. */
function assertStorageSeen(replicas: readonly Replica[], inventory: Inventory, wanted: ProvisionInput["template"]) {
  const isSeen = ({ online, node, storage }: Replica) =>
    !online || storage === "" || storageType(inventory, node, storage) !== undefined;
  const [first] = replicas;
  if (first === undefined || replicas.some(isSeen)) return;
  const path = `/storage/${first.storage}`;
  throw new FleetError(
    "forbidden",
    `storage ${first.storage} of template ${wanted} is disabled on ${first.node}, or the token lacks Datastore.Audit ` +
      `there: ${grant(path, "Datastore.Audit")}`,
    { facts: { template: String(wanted), path, privilege: "Datastore.Audit" } },
  );
}

function sourceOfSnapshot({ vmid, node, storage, diskBytes, memoryMib }: SnapshotRecord, inventory: Inventory): Source {
  return {
    vmid,
    node,
    storage: storage ?? "",
    shared: false,
    unprivileged: true,
    hookscript: inventory.replicas.some(({ hookscript }) => hookscript),
    diskBytes,
    memoryMib,
    online: inventory.nodes.some(({ name, online }) => name === node && online),
    locked: false,
    linkable: storage !== undefined,
  };
}

/** Source: PVE::Storage plugins, feature "clone". */
export const canLink = (type: string | undefined) => ["lvmthin", "zfspool", "rbd", "btrfs"].includes(type ?? "");

const storageType = (inventory: Inventory, node: string, storage: string) =>
  inventory.nodes.find(({ name }) => name === node)?.storages.find(({ name }) => name === storage)?.type;

/** Whether a clone of this source is linked: what was asked for, where its storage can. */
export function isLinked(input: ProvisionInput, source: Source): boolean {
  return input.clone !== "full" && input.sourceSnapshot === undefined && source.linkable && input.storage === undefined;
}

/** Where the root disk of a clone will lie; "" where that is not known. */
export function targetStorage(input: PlacedInput, source: Source): string {
  return isLinked(input, source) ? source.storage : (fullStorage(input) ?? source.storage);
}

/** The storage that a full clone is asked for; undefined: its source's. */
export const fullStorage = (input: PlacedInput): string | undefined => input.storage ?? input.defaultStorage;

/** Whether this source can be cloned to this node now. */
export function canCloneTo(source: Source, node: NodeInventory, input: ProvisionInput): boolean {
  if (!source.online || !isInReach(source, node, input)) return false;
  return source.node === node.name || node.storages.some(({ name, active }) => name === source.storage && active);
}

/** Whether it can when all that is down is up again. */
function isInReach(source: Source, node: NodeInventory, input: ProvisionInput): boolean {
  if (input.clone === "linked" && input.sourceSnapshot === undefined && source.storage !== "" && !source.linkable)
    return false;
  return reaches(source, node);
}

const reaches = (source: Pick<Source, "node" | "shared" | "storage">, node: NodeInventory) =>
  source.node === node.name || (source.shared && node.storages.some(({ name }) => name === source.storage));

function demandOf(input: ProvisionInput, source: Source, storage: string): Demand {
  const rootGib = Math.max(input.diskGib ?? 0, Math.ceil(source.diskBytes / GIB));
  const disks: Record<string, number> = { [storage]: rootGib };
  for (const mount of input.mountPoints) disks[mount.storage] = (disks[mount.storage] ?? 0) + mount.sizeGib;
  return {
    memoryMib: input.memoryMib ?? source.memoryMib,
    disks,
    copiedGib: isLinked(input, source) ? 0 : Math.ceil(source.diskBytes / GIB),
  };
}
