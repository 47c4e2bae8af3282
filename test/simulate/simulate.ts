/** A large cluster in a made clock, driven by the placement code that workers run: no Redis, no PVE. */
import { NodeName, Vmid } from "../../shared/ids.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import { GIB, MIB, NO_LOAD, type NodeLoad, toLoad } from "../../shared/placement/capacity.ts";
import { chooseNode, type NodeFacts, withDefaults } from "../../shared/placement/choose-node.ts";
import type { Reservation } from "../../shared/placement/reservation.ts";
import type { Inventory, NodeInventory, PlacementLimits, Replica } from "../../shared/state/inventory.ts";
import { seeded } from "../chaos/random.ts";

export interface SimulationOptions {
  nodes: number;
  sandboxes: number;
  policy: PlacementLimits["policy"];
  seed: number;
}

export interface Spread {
  min: number;
  mean: number;
  max: number;
  /** Standard deviation. */
  sd: number;
}

export interface Simulation {
  /** Sandboxes that got a node. */
  placed: number;
  /** Most alive at once. */
  peak: number;
  /** What nodes of use had promised of their memory at the peak, shares of what they may. */
  memory: Spread;
  /** Nodes with a sandbox at the peak. */
  nodesUsed: number;
  /** How often one found no free slot, or no room, and tried again. */
  waits: number;
  /** Moments in which a node had more jobs than slots or had promised more than it may: 0. */
  overLimit: number;
  /** ms of this machine that one placement took. */
  placementMs: { p50: number; p99: number };
}

/** Seconds in the made clock: how long a slot is taken by a clone and its start, and how long sandboxes live. */
const SLOT_SEC = { least: 3, most: 6 };
const LIVES_SEC = { least: 600, most: 7_200 };
const SLOTS = 4;
/** Of the slots that arrivals keep busy, were they spread evenly. */
const LOAD = 0.3;
const MEMORY_MIB = [256, 512, 512, 1_024] as const;
const SIZES_GIB = [128, 256, 512] as const;

export function simulate({ nodes: count, sandboxes, policy, seed }: SimulationOptions): Simulation {
  const random = seeded(seed);
  const nodes = Array.from({ length: count }, (_, index) => makeNode(index, random.pick(SIZES_GIB)));
  const inventory: Inventory = { at: 0, version: "9.2.0", nodes, replicas: nodes.map(makeReplica) };
  const limits: PlacementLimits = {
    slots: SLOTS,
    memoryOvercommit: 1.5,
    diskOvercommit: 4,
    storageFullPercent: 90,
    policy,
    allowPrivileged: false,
    vmids: { first: 20_000, last: 99_999_999 },
  };
  const reservations = new Map(nodes.map(({ name }) => [name as string, new Map<number, Reservation>()]));
  const jobs = new Map(nodes.map(({ name }) => [name as string, 0]));
  const loads = new Map<string, NodeLoad>(nodes.map(({ name }) => [name, NO_LOAD]));
  const facts: NodeFacts = { loads, obstacles: new Map(), settings: new Map() };
  const memoryMibOf = new Map<string, number>(nodes.map(({ name, memoryBytes }) => [name, memoryBytes / MIB]));
  const changed = new Set<string>();
  const agenda = new Agenda();
  const result = { placed: 0, peak: 0, nodesUsed: 0, waits: 0, overLimit: 0, memory: spreadOf([]) };
  const took: number[] = [];
  let alive = 0;
  let now = 0;

  const usedOf = (node: NodeInventory) =>
    ((loads.get(node.name)?.reservedMemoryMib ?? 0) * MIB) / (node.memoryBytes * limits.memoryOvercommit);
  const notePeak = () => {
    result.peak = alive;
    const shares = nodes.map(usedOf);
    result.memory = spreadOf(shares);
    result.nodesUsed = shares.filter((share) => share > 0).length;
  };
  /** As a worker does it: what has changed is summed up anew, then a node is chosen. */
  const place = (memoryMib: number) => {
    const input = withDefaults(parseInput("provision", { template: "base", memoryMib }), {});
    const begun = performance.now();
    for (const name of changed) {
      const load = toLoad([...(reservations.get(name)?.values() ?? [])], now * 1_000);
      loads.set(name, { jobs: jobs.get(name) ?? 0, ...load });
    }
    changed.clear();
    const placement = chooseNode({ input, snapshot: null, avoid: undefined }, inventory, facts, limits);
    took.push(performance.now() - begun);
    return placement;
  };
  const change = (node: string, byJobs: number) => {
    jobs.set(node, (jobs.get(node) ?? 0) + byJobs);
    changed.add(node);
    if ((jobs.get(node) ?? 0) > SLOTS) result.overLimit += 1;
  };

  const everySec = (SLOT_SEC.least + SLOT_SEC.most) / 2 / (count * SLOTS * LOAD);
  let arrived = 0;
  const arrive = (id: number, memoryMib: number) => {
    const placement = place(memoryMib);
    if ("wait" in placement) {
      result.waits += 1;
      agenda.add(now + 0.5, () => arrive(id, memoryMib));
      return;
    }
    const { node, demand } = placement;
    const promised = (loads.get(node)?.reservedMemoryMib ?? 0) + demand.memoryMib;
    if (promised > (memoryMibOf.get(node) ?? 0) * limits.memoryOvercommit) result.overLimit += 1;
    reservations.get(node)?.set(id, { memoryMib: demand.memoryMib, disks: demand.disks });
    change(node, 1);
    alive += 1;
    result.placed += 1;
    const ready = now + random.between(SLOT_SEC.least, SLOT_SEC.most);
    agenda.add(ready, () => change(node, -1));
    agenda.add(ready + random.between(LIVES_SEC.least, LIVES_SEC.most), () => {
      if (alive > result.peak) notePeak();
      reservations.get(node)?.delete(id);
      change(node, 0);
      alive -= 1;
    });
  };
  const next = () => {
    if (arrived++ >= sandboxes) return;
    arrive(arrived, random.pick(MEMORY_MIB));
    agenda.add(now + everySec * 2 * random.next(), next);
  };
  agenda.add(0, next);
  for (let due = agenda.take(); due !== undefined; due = agenda.take()) {
    now = due.at;
    due.run();
  }
  const sorted = took.toSorted((a, b) => a - b);
  const percentile = (share: number) => sorted[Math.floor((sorted.length - 1) * share)] ?? 0;
  return { ...result, placementMs: { p50: percentile(0.5), p99: percentile(0.99) } };
}

function makeNode(index: number, memoryGib: number): NodeInventory {
  return {
    name: NodeName.parse(`pve${index + 1}`),
    online: true,
    cores: memoryGib / 8,
    memoryBytes: memoryGib * GIB,
    memoryUsedBytes: 0,
    cgroup: 2,
    storages: [
      {
        name: "local-lvm",
        type: "lvmthin",
        shared: false,
        rootdir: true,
        backup: false,
        active: true,
        totalBytes: memoryGib * 16 * GIB,
        usedBytes: 0,
      },
    ],
    foreignMemoryBytes: 0,
  };
}

const makeReplica = ({ name }: NodeInventory, index: number): Replica => ({
  name: "base",
  tags: [],
  vmid: Vmid.parse(9_000 + index),
  node: name,
  storage: "local-lvm",
  shared: false,
  unprivileged: true,
  hookscript: false,
  diskBytes: 8 * GIB,
  memoryMib: 512,
  locked: false,
  online: true,
});

function spreadOf(values: readonly number[]): Spread {
  const mean = values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, values.length);
  return { min: Math.min(...values), mean, max: Math.max(...values), sd: Math.sqrt(variance) };
}

interface Due {
  at: number;
  run(): void;
}

/** What comes next: a binary heap. */
class Agenda {
  readonly #heap: Due[] = [];

  add(at: number, run: () => void): void {
    const heap = this.#heap;
    const due = { at, run };
    let index = heap.push(due) - 1;
    while (index > 0) {
      const above = (index - 1) >> 1;
      const parent = heap[above];
      if (parent === undefined || parent.at <= at) break;
      heap[index] = parent;
      index = above;
    }
    heap[index] = due;
  }

  take(): Due | undefined {
    const heap = this.#heap;
    const [first] = heap;
    const last = heap.pop();
    if (last === undefined || heap.length === 0) return first;
    let index = 0;
    while (true) {
      let below = 2 * index + 1;
      if ((heap[below + 1]?.at ?? Number.POSITIVE_INFINITY) < (heap[below]?.at ?? Number.POSITIVE_INFINITY)) below += 1;
      const child = heap[below];
      if (child === undefined || child.at >= last.at) break;
      heap[index] = child;
      index = below;
    }
    heap[index] = last;
    return first;
  }
}
