/** How many more sandboxes there is room for: pure. */
import type { NodeName } from "../ids.ts";
import type { Inventory, PlacementLimits } from "../state/inventory.ts";
import { type Promises, roomOf, storageOf, whyUnusable } from "./capacity.ts";
import { findPlaces, type NodeFacts, type PlacementRequest } from "./choose-node.ts";

export interface NodeRoom {
  node: NodeName;
  /** How many more fit. */
  more: number;
  /** What ends first, such as `memory` or `disk of local-lvm`; why there is none where there is none. */
  limit: string;
}

export interface FleetRoom {
  /** How many more fit, everything considered. */
  more: number;
  /** What keeps it from being more. */
  limit: string;
  /** Nodes that have, or reach, the template. */
  nodes: NodeRoom[];
}

/** What there is besides the nodes, by what it is called; each limits the whole. */
export type Supplies = Readonly<Record<string, number>>;

/**
 * How many more of one provision fit, where, and what limits it. A node that can't be used now counts as full.
 * Throws what a provision would be refused with for good: see `chooseNode`.
 */
export function howMany(
  request: Pick<PlacementRequest, "input" | "snapshot">,
  inventory: Inventory,
  facts: NodeFacts,
  limits: PlacementLimits,
  supplies: Supplies,
): FleetRoom {
  const promises: Promises = { ...facts, readAt: inventory.at };
  const places = findPlaces(request, inventory, facts, limits);
  /** Of storages that several nodes share: how many fit on each, whichever node they stand on. */
  const shared = new Map<string, { more: number; limit: string; of: number }>();
  const nodes = places.map((place): NodeRoom => {
    const { node, storage, demand } = place;
    const problem = facts.obstacles.get(node.name) ?? place.sourceProblem ?? whyUnusable(place);
    if (problem !== null && problem !== undefined) return { node: node.name, more: 0, limit: problem };
    const { more, limit, reason } = roomOf(place, promises, limits);
    if (storageOf(node, storage)?.shared) {
      // The node's own limits left out.
      const of = { ...place, demand: { ...demand, memoryMib: 0 } };
      const room = roomOf(of, promises, { ...limits, nodeSandboxes: undefined });
      const known = shared.get(storage);
      shared.set(storage, { more: room.more, limit: room.limit, of: (known?.of ?? 0) + more });
    }
    return { node: node.name, more, limit: more === 0 ? reason : limit };
  });
  const scarce = [...shared.values()].filter(({ more, of }) => more < of);
  const room = {
    more: [...nodes, ...scarce.map(({ more, of }) => ({ more: more - of }))].reduce((sum, { more }) => sum + more, 0),
    limit: [...new Set([...nodes, ...scarce].map(({ limit }) => limit))].join("; "),
  };
  const bounds = [room, ...Object.entries(supplies).map(([limit, more]) => ({ limit, more: Math.max(0, more) }))];
  return { ...bounds.reduce((least, one) => (one.more < least.more ? one : least)), nodes };
}
