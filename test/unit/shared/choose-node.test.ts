import { describe, expect, it } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { NodeName, SandboxId, SnapshotId, TeamId, Vmid } from "../../../shared/ids.ts";
import { type JobInput, parseInput } from "../../../shared/jobs/index.ts";
import { GIB, NO_LOAD, type NodeLoad, toLoad } from "../../../shared/placement/capacity.ts";
import { chooseNode, type NodeFacts, withDefaults } from "../../../shared/placement/choose-node.ts";
import { howMany } from "../../../shared/placement/how-many.ts";
import { parseReservation } from "../../../shared/placement/reservation.ts";
import type { Inventory, NodeInventory, PlacementLimits, Replica, Storage } from "../../../shared/state/inventory.ts";
import type { NodeSettings } from "../../../shared/state/nodes.ts";
import type { SnapshotRecord } from "../../../shared/state/records.ts";
import { asideMs } from "../../../workers/placement/aside.ts";

const LIMITS: PlacementLimits = {
  slots: 4,
  memoryOvercommit: 1.5,
  diskOvercommit: 4,
  storageFullPercent: 90,
  policy: "spread",
  allowPrivileged: false,
  vmids: { first: 20_000, last: 29_999 },
};
const BUSY = { jobs: 4 };

function storage(more: Partial<Storage> = {}): Storage {
  const base = { name: "local-lvm", type: "lvmthin", shared: false, rootdir: true, backup: false, active: true };
  return { ...base, totalBytes: 100 * GIB, usedBytes: 0, ...more };
}

function node(name: string, more: Partial<NodeInventory> = {}): NodeInventory {
  return {
    name: NodeName.parse(name),
    online: true,
    cores: 8,
    memoryBytes: 16 * GIB,
    memoryUsedBytes: 0,
    cgroup: 2,
    storages: [storage()],
    foreignMemoryBytes: 0,
    ...more,
  };
}

function replica(on: string, more: Partial<Replica> = {}): Replica {
  return {
    name: "base",
    tags: [],
    vmid: Vmid.parse(9_001),
    node: NodeName.parse(on),
    storage: "local-lvm",
    shared: false,
    unprivileged: true,
    hookscript: false,
    diskBytes: 4 * GIB,
    memoryMib: 512,
    locked: false,
    online: true,
    ...more,
  };
}

interface World {
  nodes: NodeInventory[];
  replicas: Replica[];
  loads?: Record<string, Partial<NodeLoad>>;
  snapshot?: SnapshotRecord;
  obstacles?: Record<string, string>;
  settings?: Record<string, NodeSettings>;
  limits?: Partial<PlacementLimits>;
  group?: string;
  avoid?: string;
}

function toFacts({ loads = {}, obstacles = {}, settings = {} }: World): NodeFacts {
  return {
    loads: new Map(Object.entries(loads).map(([name, load]) => [name, { ...NO_LOAD, ...load }])),
    obstacles: new Map(Object.entries(obstacles)),
    settings: new Map(Object.entries(settings)),
  };
}

function choose(world: World, input: Partial<JobInput<"provision">> = {}, config: { PVE_STORAGE?: string } = {}) {
  const inventory: Inventory = { at: 0, version: "8.4.1", nodes: world.nodes, replicas: world.replicas };
  const parsed = withDefaults(parseInput("provision", { template: "base", ...input }), config);
  const avoid = world.avoid === undefined ? undefined : NodeName.parse(world.avoid);
  const request = { input: parsed, snapshot: world.snapshot ?? null, avoid, group: world.group };
  return chooseNode(request, inventory, toFacts(world), { ...LIMITS, ...world.limits });
}

function refusal(world: World, input: Partial<JobInput<"provision">>): FleetError {
  try {
    choose(world, input);
  } catch (error) {
    if (error instanceof FleetError) return error;
    throw error;
  }
  throw new Error("it was not refused");
}

const onDisk = (gib: number, on = "local-lvm") => ({ reservedDiskGib: new Map([[on, gib]]) });
const two = (): World => ({ nodes: [node("a"), node("b")], replicas: [replica("a"), replica("b")] });

describe("a request that fits nowhere, ever", () => {
  it("is refused with the field and the most that there is", () => {
    const memory = refusal(two(), { memoryMib: 8_388_608 });
    expect(memory).toMatchObject({ code: "invalid_input", facts: { fields: ["memoryMib"] } });
    expect(memory.text).toContain("the most is 24576");
    const disk = refusal(two(), { diskGib: 401 });
    expect(disk).toMatchObject({ code: "invalid_input", facts: { fields: ["diskGib"] } });
    expect(disk.text).toContain("the most is 400");
    expect(refusal(two(), { memoryMib: 30_000, diskGib: 500 }).facts["fields"]).toEqual(["memoryMib", "diskGib"]);
  });

  it("is so when each of the two fits on another node only", () => {
    const world = {
      nodes: [
        node("wide", { storages: [storage({ totalBytes: 1_000 * GIB })] }),
        node("tall", { memoryBytes: 64 * GIB }),
      ],
      replicas: [replica("wide"), replica("tall")],
    };
    expect(choose(world, { memoryMib: 60_000 })).toMatchObject({ node: "tall" });
    expect(choose(world, { diskGib: 2_000 })).toMatchObject({ node: "wide" });
    const neither = refusal(world, { memoryMib: 60_000, diskGib: 2_000 });
    expect(neither.facts["fields"]).toEqual(["memoryMib", "diskGib"]);
    expect(neither.text).toMatch(/the most is 24576 or .*the most is 400/);
  });

  it("counts the nodes that it may go to only", () => {
    const world = { nodes: [node("a"), node("big", { memoryBytes: 64 * GIB })], replicas: [replica("a")] };
    expect(refusal(world, { memoryMib: 30_000 }).facts["fields"]).toEqual(["memoryMib"]);
    expect(
      refusal({ ...two(), nodes: [node("a"), node("b", { memoryBytes: 64 * GIB })] }, { memoryMib: 30_000, node: "a" })
        .code,
    ).toBe("invalid_input");
  });

  it("is not refused while a node is down that may be large enough", () => {
    const down = node("b", { online: false, memoryBytes: 64 * GIB });
    const world = { nodes: [node("a"), down], replicas: [replica("a"), replica("b", { online: false })] };
    expect(choose(world, { memoryMib: 30_000 })).toMatchObject({ wait: "room" });
    const unknown = { ...world, nodes: [node("a"), node("b", { online: false, memoryBytes: 0, storages: [] })] };
    expect(choose(unknown, { memoryMib: 30_000 })).toMatchObject({ wait: "room" });
  });
});

describe("who waits for what", () => {
  it("holds the line while every node is busy, whatever it needs itself", () => {
    expect(choose({ ...two(), loads: { a: BUSY, b: BUSY } })).toMatchObject({ wait: "line" });
    expect(choose({ ...two(), loads: { a: BUSY, b: BUSY } }, { node: "a" })).toMatchObject({ wait: "line" });
    expect(
      choose({ ...two(), loads: { a: BUSY, b: { ...BUSY, reservedMemoryMib: 24_000 } } }, { memoryMib: 1_024 }),
    ).toMatchObject({
      wait: "line",
    });
  });

  it("leaves the line when its node is busy and another is not", () => {
    expect(choose({ ...two(), loads: { a: BUSY } }, { node: "a" })).toMatchObject({ wait: "aside" });
    expect(
      choose({
        nodes: [node("a"), node("b")],
        replicas: [replica("a"), replica("b", { name: "other" })],
        loads: { a: BUSY },
      }),
    ).toMatchObject({ wait: "aside" });
  });

  it("does not count a node without template and sandbox as one that others may go to", () => {
    const witness = { nodes: [node("a"), node("witness")], replicas: [replica("a")] };
    expect(choose({ ...witness, loads: { a: BUSY } })).toMatchObject({ wait: "line" });
    expect(choose({ ...witness, loads: { a: BUSY, witness: { reservedMemoryMib: 512 } } })).toMatchObject({
      wait: "aside",
    });
  });

  it("waits for room when nodes with free slots are full", () => {
    const full = { reservedMemoryMib: 24_000 };
    expect(choose({ ...two(), loads: { a: full, b: full } }, { memoryMib: 1_024 })).toMatchObject({ wait: "room" });
    expect(choose({ ...two(), loads: { a: full, b: BUSY } }, { memoryMib: 1_024 })).toMatchObject({ wait: "room" });
    expect(choose({ ...two(), loads: { a: onDisk(390), b: onDisk(390) } }, { diskGib: 20 })).toMatchObject({
      wait: "room",
    });
    expect(choose({ ...two(), loads: { a: { ...full, ...BUSY } } }, { memoryMib: 1_024, node: "a" })).toMatchObject({
      wait: "aside",
    });
  });

  it("steps aside for what is down or inactive", () => {
    const down = {
      nodes: [node("a"), node("b", { online: false })],
      replicas: [replica("a"), replica("b", { online: false })],
    };
    expect(choose(down, { node: "b" })).toMatchObject({ wait: "aside" });
    const inactive = { nodes: [node("a", { storages: [storage({ active: false })] })], replicas: [replica("a")] };
    expect(choose(inactive)).toMatchObject({ wait: "aside", reason: "a: storage local-lvm is not active" });
  });
});

describe("a node that takes nothing new", () => {
  const cordoned = { obstacles: { a: "cordoned" } };

  it("is left out, though it is the emptiest, and the reason is told where none is left", () => {
    expect(choose({ ...two(), ...cordoned, loads: { b: { jobs: 3 } } })).toMatchObject({ node: "b" });
    const both = { ...two(), obstacles: { a: "cordoned (new disk)", b: "its circuit breaker is open" } };
    expect(choose(both)).toEqual({
      wait: "aside",
      reason: "a: cordoned (new disk); b: its circuit breaker is open",
    });
    expect(choose({ ...two(), ...cordoned }, { node: "a" })).toMatchObject({ wait: "aside", reason: "a: cordoned" });
  });

  it("does not make the line wait aside while all others are busy", () => {
    expect(choose({ ...two(), ...cordoned, loads: { b: BUSY } })).toMatchObject({ wait: "line" });
  });

  it("is no source for others either", () => {
    const ceph = storage({ name: "ceph", type: "rbd", shared: true });
    const nodes = [node("a", { storages: [ceph] }), node("b", { storages: [ceph] })];
    const shared = replica("a", { storage: "ceph", shared: true });
    expect(choose({ nodes, replicas: [shared] })).toMatchObject({ node: "a" });
    expect(choose({ nodes, replicas: [shared], ...cordoned })).toEqual({
      wait: "aside",
      reason: "a: cordoned; b: the template's node a: cordoned",
    });
  });
});

describe("a node that has just refused it", () => {
  it("is left alone where there is another, busy or not", () => {
    expect(choose({ ...two(), avoid: "a" })).toMatchObject({ node: "b" });
    const busy = choose({ ...two(), avoid: "a", loads: { b: BUSY } });
    expect(busy).toMatchObject({ wait: "aside", reason: expect.stringContaining("a: it refused this one just now") });
  });

  it("is tried again where it is the only one", () => {
    expect(choose({ nodes: [node("a")], replicas: [replica("a")], avoid: "a" })).toMatchObject({ node: "a" });
  });
});

describe("a replica that the fleet made", () => {
  const copy = (configHash: string) =>
    replica("b", { vmid: Vmid.parse(20_000), copyOf: { vmid: Vmid.parse(9_001), configHash } });
  const busyOriginal = (configHash: string, copied: string): World => ({
    nodes: [node("a"), node("b")],
    replicas: [replica("a", { configHash }), copy(copied)],
    loads: { a: BUSY },
  });

  it("stands for its original as long as that is as it was", () => {
    expect(choose(busyOriginal("now", "now"))).toMatchObject({ node: "b" });
    expect(choose(busyOriginal("now", "before"))).toHaveProperty("wait");
    expect(refusal(busyOriginal("now", "before"), { node: "b" })).toMatchObject({ code: "invalid_input" });
  });

  it("stands for it once that has gone, too", () => {
    const { nodes } = busyOriginal("now", "now");
    expect(choose({ nodes, replicas: [copy("before")] })).toMatchObject({ node: "b" });
  });
});

describe("a template whose node is down", () => {
  const down = (more: Partial<Replica> = {}): World => ({
    nodes: [node("a"), node("b", { online: false, storages: [storage(), CEPH] })],
    replicas: [replica("b", { online: false, ...more })],
  });
  const CEPH = storage({ name: "ceph", type: "rbd", shared: true });

  it("is there: the request waits", () => {
    expect(choose(down())).toEqual({ wait: "aside", reason: "b: the template's node is offline, or can't read it" });
    expect(refusal(down(), { template: "other" }).code).toBe("template_not_found");
  });

  it("may be one of which only the VMID is known", () => {
    const nameless = down({ name: "9001", storage: "", diskBytes: 0 });
    expect(choose(nameless, { template: 9_001 })).toMatchObject({ wait: "aside" });
    expect(refusal(nameless, {}).text).toContain("templates are: none");
  });

  it("can't be cloned to another node from a shared storage either, but its other replica can", () => {
    const nodes = [node("a", { storages: [CEPH] }), node("b", { online: false, storages: [CEPH] })];
    const gone = replica("b", { online: false, storage: "ceph", shared: true });
    expect(choose({ nodes, replicas: [gone] })).toMatchObject({ wait: "aside" });
    const here = replica("a", { vmid: Vmid.parse(9_002), storage: "ceph", shared: true });
    expect(choose({ nodes, replicas: [gone, here] })).toMatchObject({ node: "a" });
  });

  it("is waited for by a clone of a snapshot too", () => {
    const snapshot: SnapshotRecord = {
      id: SnapshotId.parse("snap_0123456789abcdef"),
      sandbox: SandboxId.parse("sbx_0123456789abcdef"),
      team: TeamId.parse("default"),
      node: NodeName.parse("b"),
      vmid: Vmid.parse(20_000),
      name: "one",
      createdAt: 0,
      diskBytes: 0,
      memoryMib: 512,
    };
    expect(choose({ ...down(), snapshot }, { template: snapshot.id })).toMatchObject({ wait: "aside" });
    const up = { ...down(), nodes: [node("a"), node("b")], snapshot };
    expect(choose(up, { template: snapshot.id })).toMatchObject({ node: "b" });
  });
});

it("picks the node with the fewest jobs, then the emptier one", () => {
  expect(choose({ ...two(), loads: { a: { jobs: 2 }, b: { jobs: 1 } } })).toMatchObject({ node: "b" });
  expect(choose({ ...two(), loads: { a: { reservedMemoryMib: 10 } } })).toMatchObject({ node: "b" });
});

describe("packing", () => {
  const packed = { limits: { policy: "pack" } satisfies Partial<PlacementLimits> };

  it("fills a node before the next, until its slots or its memory are used up", () => {
    const loads = { a: { reservedMemoryMib: 512 }, b: { reservedMemoryMib: 1_024, jobs: 3 } };
    expect(choose({ ...two(), ...packed, loads })).toMatchObject({ node: "b" });
    expect(choose({ ...two(), ...packed, loads: { ...loads, b: { ...loads.b, jobs: 4 } } })).toMatchObject({
      node: "a",
    });
    expect(choose({ ...two(), ...packed, loads: { b: { reservedMemoryMib: 24_500 } } })).toMatchObject({ node: "a" });
  });
});

describe("a group whose members keep apart", () => {
  const one = { group: "team/g", loads: { a: { groups: new Map([["team/g", 1]]) }, b: { jobs: 3 } } };

  it("goes to the node with the fewest of it, busier or not", () => {
    expect(choose({ ...two(), ...one }, { antiAffinity: {} })).toMatchObject({ node: "b" });
    expect(choose({ ...two(), ...one, group: "team/other" }, { antiAffinity: {} })).toMatchObject({ node: "a" });
  });

  it("shares a node where there is no other, unless apart is a must", () => {
    const alone = { ...one, nodes: [node("a")], replicas: [replica("a")] };
    expect(choose(alone, { antiAffinity: {} })).toMatchObject({ node: "a" });
    expect(choose(alone, { antiAffinity: { mode: "require" } })).toEqual({
      wait: "aside",
      reason: "a: it has one of the same group",
    });
  });
});

describe("labels", () => {
  const settings = { a: { labels: ["ssd"] }, b: { labels: ["ssd", "zone=b"] } };

  it("leave the nodes that carry all of them", () => {
    expect(choose({ ...two(), settings, loads: { b: { jobs: 3 } } }, { nodeLabels: ["ssd", "zone=b"] })).toMatchObject({
      node: "b",
    });
    expect(choose({ ...two(), settings, loads: { b: BUSY } }, { nodeLabels: ["zone=b"] })).toMatchObject({
      wait: "aside",
    });
  });

  it("that no node with the template carries are refused, and those that there are told", () => {
    const error = refusal({ ...two(), settings }, { nodeLabels: ["gpu"] });
    expect(error).toMatchObject({ code: "invalid_input", facts: { fields: ["nodeLabels"] } });
    expect(error.text).toContain("ssd, zone=b");
  });
});

it("is packed among the nodes with its labels that have the fewest of its group", () => {
  const names = ["a", "b", "c", "d"];
  const world: World = {
    nodes: names.map((name) => node(name)),
    replicas: names.map((name) => replica(name)),
    limits: { policy: "pack" },
    group: "team/g",
    // The fullest has no label, the next has one of the group.
    settings: { b: { labels: ["ssd"] }, c: { labels: ["ssd"] }, d: { labels: ["ssd"] } },
    loads: {
      a: { reservedMemoryMib: 8_192 },
      b: { reservedMemoryMib: 4_096, groups: new Map([["team/g", 1]]) },
      c: { reservedMemoryMib: 2_048, jobs: 1 },
      d: { reservedMemoryMib: 1_024 },
    },
  };
  const asked = { nodeLabels: ["ssd"], antiAffinity: {} };
  expect(choose(world, asked)).toMatchObject({ node: "c" });
  const { group: _, ...ungrouped } = world;
  expect(choose(ungrouped, { nodeLabels: ["ssd"] })).toMatchObject({ node: "b" });
  expect(choose(world, { antiAffinity: {} })).toMatchObject({ node: "a" });
  const full = { ...world, loads: { ...world.loads, c: { jobs: 4 } } };
  expect(choose(full, asked)).toMatchObject({ node: "d" });
  const busy = { ...full, loads: { ...full.loads, d: { jobs: 4 } } };
  expect(choose(busy, asked)).toMatchObject({ node: "b" });
  expect(choose(busy, { ...asked, antiAffinity: { mode: "require" } })).toMatchObject({
    wait: "aside",
    reason: expect.stringContaining("b: it has one of the same group"),
  });
});

describe("the limits of a node", () => {
  it("are its own where an operator has set them", () => {
    const loads = { a: { sandboxes: 2 }, b: { sandboxes: 2, jobs: 1 } };
    expect(choose({ ...two(), loads, limits: { nodeSandboxes: 2 } })).toEqual({
      wait: "room",
      reason: "a: it has its 2 sandboxes; b: it has its 2 sandboxes",
    });
    expect(
      choose({ ...two(), loads, limits: { nodeSandboxes: 2 }, settings: { b: { maxSandboxes: 3 } } }),
    ).toMatchObject({
      node: "b",
    });
    const memory = { ...two(), loads: { a: { reservedMemoryMib: 16_384 } }, settings: { a: { memoryOvercommit: 1 } } };
    expect(choose(memory, { node: "a" })).toMatchObject({ wait: "room" });
  });
});

describe("a storage that is nearly full", () => {
  const world = (usedGib: number, loads: World["loads"] = {}) => ({
    nodes: [node("a", { storages: [storage({ usedBytes: usedGib * GIB })] })],
    replicas: [replica("a")],
    loads,
  });
  const full = { wait: "room", reason: "a: storage local-lvm is over 90 % full" };

  it("takes no clone, though nothing is promised on it", () => {
    expect(choose(world(89))).toMatchObject({ node: "a" });
    expect(choose(world(91))).toEqual(full);
  });

  it("is as full as the copies on their way will make it", () => {
    expect(choose(world(84), { clone: "full" })).toMatchObject({ node: "a" });
    expect(choose(world(87), { clone: "full" })).toEqual(full);
    const copying = { a: { copies: [{ storage: "local-lvm", gib: 4 }] } };
    expect(choose(world(84, copying), { clone: "full" })).toEqual(full);
    // PVE was asked at 0 and has counted what was written long before.
    const counted = { a: { copies: [{ storage: "local-lvm", gib: 4, doneAt: -60_000 }] } };
    expect(choose(world(84, counted), { clone: "full" })).toMatchObject({ node: "a" });
  });

  it("counts what all nodes have promised where they share it", () => {
    const ceph = storage({ name: "ceph", type: "rbd", shared: true });
    const nodes = [node("a", { storages: [ceph] }), node("b", { storages: [ceph] })];
    const shared = replica("a", { storage: "ceph", shared: true });
    const loads = { a: onDisk(200, "ceph"), b: onDisk(190, "ceph") };
    expect(choose({ nodes, replicas: [shared], loads }, { diskGib: 10 })).toMatchObject({ node: "a" });
    expect(choose({ nodes, replicas: [shared], loads }, { diskGib: 11 })).toMatchObject({ wait: "room" });
  });
});

describe("how many more fit", () => {
  const room = (world: World, input: Partial<JobInput<"provision">> = {}, supplies = { VMIDs: 10_000 }) => {
    const inventory: Inventory = { at: 0, version: "8.4.1", nodes: world.nodes, replicas: world.replicas };
    const parsed = withDefaults(parseInput("provision", { template: "base", ...input }), {});
    const request = { input: parsed, snapshot: null };
    return howMany(request, inventory, toFacts(world), { ...LIMITS, ...world.limits }, supplies);
  };

  it("is told by node with what ends first", () => {
    const world = { ...two(), loads: { a: { reservedMemoryMib: 20_000 } }, obstacles: { b: "cordoned" } };
    expect(room(world, { memoryMib: 1_024 })).toEqual({
      more: 4,
      limit: "memory; cordoned",
      nodes: [
        { node: "a", more: 4, limit: "memory" },
        { node: "b", more: 0, limit: "cordoned" },
      ],
    });
    expect(room(two(), { diskGib: 100 })).toMatchObject({ more: 8, limit: "disk of local-lvm" });
    expect(room(two(), {}, { VMIDs: 3 })).toMatchObject({ more: 3, limit: "VMIDs" });
  });

  it("counts a shared storage once", () => {
    const ceph = storage({ name: "ceph", type: "rbd", shared: true });
    const nodes = [node("a", { storages: [ceph] }), node("b", { storages: [ceph] })];
    const replicas = [replica("a", { storage: "ceph", shared: true })];
    expect(room({ nodes, replicas }, { diskGib: 100 })).toMatchObject({ more: 4 });
    expect(room({ nodes, replicas, limits: { nodeSandboxes: 1 } }, { diskGib: 100 })).toMatchObject({ more: 2 });
  });

  it("is as many as the placer places", () => {
    const world = { ...two(), loads: { a: { reservedMemoryMib: 3_000 }, b: { reservedMemoryMib: 0 } } };
    const { more } = room(world, { memoryMib: 700 });
    let placed = 0;
    while (true) {
      const placement = choose(world, { memoryMib: 700 });
      if ("wait" in placement) break;
      world.loads[placement.node as "a" | "b"].reservedMemoryMib += 700;
      placed += 1;
    }
    expect(placed).toBe(more);
  });
});

it("sums up what a node has promised", () => {
  const now = 100_000;
  const load = toLoad(
    [
      { memoryMib: 512, disks: { lvm: 4, data: 2 }, copy: { storage: "lvm", gib: 4 }, group: "g" },
      { memoryMib: 512, disks: { lvm: 4 }, copy: { storage: "lvm", gib: 4, doneAt: 1 }, group: "g" },
      parseReservation("256 8"),
      parseReservation("{broken"),
      { memoryMib: 0, disks: { lvm: 1 } },
    ],
    now,
  );
  expect(load).toEqual({
    sandboxes: 3,
    reservedMemoryMib: 1_280,
    reservedDiskGib: new Map([
      ["lvm", 9],
      ["data", 2],
      ["", 8],
    ]),
    copies: [{ storage: "lvm", gib: 4 }],
    groups: new Map([["g", 2]]),
  });
});

describe("how long it steps aside", () => {
  it("is half a second for a few, and grows with each time as far as the crowd is large", () => {
    expect([0, 1, 2, 9].map((times) => asideMs(times, 3))).toEqual([500, 500, 500, 500]);
    expect([0, 1, 2, 3, 4, 9].map((times) => asideMs(times, 500))).toEqual([500, 1_000, 2_000, 4_000, 8_000, 10_000]);
  });

  it("keeps ten thousand from taking more than a part of the placer's time", () => {
    const looksPerSecond = 10_000 / (asideMs(30, 10_000) / 1_000);
    expect(looksPerSecond).toBeLessThan(100);
  });
});

describe("the storage of a full clone", () => {
  const onDir = { storage: "local" };
  const local = storage({ name: "local", type: "dir" });
  const world = () => ({
    nodes: [
      node("a", { storages: [local, storage()] }),
      node("b", { storages: [local, storage(), storage({ name: "big" })] }),
    ],
    replicas: [replica("a", onDir), replica("b", { ...onDir, vmid: Vmid.parse(9_002) })],
  });
  const PVE_STORAGE = "big";

  it("is PVE_STORAGE too where linked_or_full falls back, so that the node has it", () => {
    expect(choose(world(), { clone: "linked_or_full" }, { PVE_STORAGE })).toMatchObject({ node: "b" });
    expect(choose(world(), { clone: "full" }, { PVE_STORAGE })).toMatchObject({ node: "b" });
  });

  it("says nothing of a clone that is linked", () => {
    const linkable = { ...world(), replicas: [replica("a")] };
    for (const clone of ["linked", "linked_or_full"] as const)
      expect(choose(linkable, { clone }, { PVE_STORAGE: "nowhere" })).toMatchObject({ node: "a" });
  });

  it("that no node has, or none with a source, is told", () => {
    expect(() => choose(world(), { clone: "linked_or_full" }, { PVE_STORAGE: "nowhere" })).toThrow(
      /no storage nowhere/,
    );
    const apart = { ...world(), replicas: [replica("a", onDir)] };
    expect(() => choose(apart, { clone: "full" }, { PVE_STORAGE })).toThrow(
      /no node with a source of base has storage big/,
    );
  });
});

describe("the storages of mount points", () => {
  const world = { ...two(), nodes: [node("a"), node("b", { storages: [storage(), storage({ name: "data" })] })] };
  const mountPoints = [{ storage: "data", sizeGib: 1, path: "/data" }];

  it("decide on the node", () => {
    expect(choose(world, { mountPoints })).toMatchObject({ node: "b" });
  });

  it("are waited for when they are inactive, and refused when there are none", () => {
    const inactive = storage({ name: "data", active: false });
    const resting = { ...world, nodes: [node("a"), node("b", { storages: [storage(), inactive] })] };
    expect(choose(resting, { mountPoints })).toMatchObject({
      wait: "aside",
      reason: expect.stringContaining("storage data is not active"),
    });
    expect(refusal(two(), { mountPoints })).toMatchObject({ code: "storage_not_found", facts: { storage: "data" } });
  });
});
