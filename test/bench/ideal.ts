/** How soon a bulk could end under its limits: pure. */
import type { PveShare } from "./record.ts";

export interface Limits {
  nodes: number;
  /** Provisions at once on a node, from the clone request to the end of the start. */
  slots: number;
  /** Clones at once on a node: one a template replica. */
  replicas: number;
}

/**
 * The makespan, in ms, of a fleet that loses no time at all: in their order, each provision takes the slot that is free
 * first, then its node's replica that is free first, and each of its steps follows the one before at once and takes as
 * long as it really took.
 */
export function idealMs(shares: readonly PveShare[], { nodes, slots, replicas }: Limits): number {
  const places = Array.from({ length: nodes }, () => ({
    slots: new Array<number>(slots).fill(0),
    replicas: new Array<number>(replicas).fill(0),
  }));
  let end = 0;
  for (const share of [...shares].sort((a, b) => a.at - b.at)) {
    // Where its clone can begin first.
    const begins = places.map((place) => Math.max(Math.min(...place.slots), Math.min(...place.replicas)));
    const begin = Math.min(...begins);
    const place = places[begins.indexOf(begin)];
    if (place === undefined) throw new Error("no nodes");
    const built = begin + share.cloneMs + share.configureMs + share.startMs;
    take(place.replicas, begin + share.cloneMs);
    take(place.slots, built);
    end = Math.max(end, built + share.readyMs);
  }
  return end;
}

/** The one that is free first is busy until then. */
function take(units: number[], until: number): void {
  units[units.indexOf(Math.min(...units))] = until;
}
