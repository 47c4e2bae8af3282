/** Where replicas of templates can be brought, and where a provision that finds no room needs one. Pure. */

import type { NodeName, Vmid } from "../../shared/ids.ts";
import { NO_LOAD, type NodeLoad, type Site, whyNoRoom, whyUnusable } from "../../shared/placement/capacity.ts";
import {
  canLink,
  findPlaces,
  findSources,
  loadWeight,
  type NodeFacts,
  type PlacementRequest,
  type Source,
} from "../../shared/placement/choose-node.ts";
import type { Inventory, NodeInventory, PlacementLimits, Storage } from "../../shared/state/inventory.ts";

/** How a template comes to another node, and onto which storage: as a full clone over it, or as an archive over another. */
export interface Way {
  storage: Storage;
  /** Where the archive lies meanwhile; undefined: none is needed. */
  archive?: string;
}

/**
 * Ways to bring a template to another node, the best first: clones, which are one step, over its own storage, then over one that
 * clones linked; then archives, restored to a storage of the node.
 */
export function waysTo(
  { nodes }: Pick<Inventory, "nodes">,
  { node: from, storage: own }: Pick<Source, "node" | "storage">,
  to: string,
): Way[] {
  const of = (node: string) => (nodes.find(({ name }) => name === node)?.storages ?? []).filter(({ active }) => active);
  const there = of(from);
  const isCommon = ({ name, shared }: Storage) => shared && there.some((one) => one.name === name);
  const targets = of(to)
    .filter(({ rootdir }) => rootdir)
    .sort(
      (a, b) => Number(b.name === own) - Number(a.name === own) || Number(canLink(b.type)) - Number(canLink(a.type)),
    );
  const archive = of(to).find((one) => one.backup && isCommon(one))?.name;
  return [
    ...targets.filter(isCommon).map((storage) => ({ storage })),
    ...(archive === undefined ? [] : targets.map((storage) => ({ storage, archive }))),
  ];
}

export interface Wish {
  /** The original. */
  template: Vmid;
  node: NodeName;
}

/**
 * Null: one of the nodes that have the template will do, as soon as it has a slot; or none of the others would be better. To be
 * asked for a request that `chooseNode` lets wait. `most`: replicas that the fleet makes of a template.
 */
export function wishReplica(
  request: PlacementRequest,
  inventory: Inventory,
  facts: NodeFacts,
  limits: PlacementLimits,
  most: number,
): Wish | null {
  const { input, snapshot } = request;
  // A snapshot is no template, and who names a node wants that one.
  if (most === 0 || snapshot !== null || input.node !== undefined) return null;
  const sources = findSources(request, inventory, limits);
  const original = sources.find(({ copyOf, online }) => copyOf === undefined && online);
  if (!original || sources.filter(({ copyOf }) => copyOf?.vmid === original.vmid).length >= most) return null;
  const promises = { ...facts, readAt: inventory.at };
  const places = findPlaces(request, inventory, facts, limits);
  const isHopeless = (place: (typeof places)[number]) =>
    (facts.obstacles.get(place.node.name) ?? place.sourceProblem ?? whyUnusable(place)) !== null ||
    whyNoRoom(place, promises, limits) !== null;
  const [demand] = places.map((place) => place.demand);
  if (demand === undefined || !places.every(isHopeless)) return null;
  const isKnown = (node: NodeInventory) => places.some((place) => place.node.name === node.name);
  const hasLabels = ({ name }: NodeInventory) =>
    (input.nodeLabels ?? []).every((label) => facts.settings.get(name)?.labels?.includes(label));
  const best = inventory.nodes
    .filter((node) => node.online && !facts.obstacles.has(node.name) && !isKnown(node) && hasLabels(node))
    .flatMap((node) => {
      const [way] = waysTo(inventory, original, node.name);
      const load = facts.loads.get(node.name) ?? NO_LOAD;
      return way && isIdle(load, limits) ? [{ node, load, way, site: siteOf(node, way.storage.name, demand) }] : [];
    })
    .filter(({ site }) => whyNoRoom(site, promises, limits) === null)
    .sort(
      (a, b) =>
        Number(a.way.archive !== undefined) - Number(b.way.archive !== undefined) ||
        loadWeight(a.load, a.node) - loadWeight(b.load, b.node),
    )[0];
  return best ? { template: original.vmid, node: best.node.name } : null;
}

/** Others' work goes first. */
const isIdle = ({ jobs }: NodeLoad, { slots }: PlacementLimits) => jobs < Math.max(1, slots / 2);

/** Room for the replica's own disk and for the sandbox that wants it. */
function siteOf(node: NodeInventory, storage: string, { memoryMib, disks }: Site["demand"]): Site {
  const rootGib = Math.max(0, ...Object.values(disks));
  return { node, storage, mounts: [], demand: { memoryMib, disks: { [storage]: 2 * rootGib }, copiedGib: rootGib } };
}
