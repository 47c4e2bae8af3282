import { expect, test } from "vitest";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import { parseInput } from "../../../shared/jobs/index.ts";
import { GIB, NO_LOAD, type NodeLoad } from "../../../shared/placement/capacity.ts";
import type { Inventory, NodeInventory, PlacementLimits, Replica, Storage } from "../../../shared/state/inventory.ts";
import { waysTo, wishReplica } from "../../../workers/placement/replica-site.ts";

const LIMITS: PlacementLimits = {
  slots: 4,
  memoryOvercommit: 1,
  diskOvercommit: 4,
  storageFullPercent: 90,
  policy: "spread",
  allowPrivileged: false,
  vmids: { first: 20_000, last: 29_999 },
};
const local: Storage = {
  name: "local-lvm",
  type: "lvmthin",
  shared: false,
  rootdir: true,
  backup: false,
  active: true,
  totalBytes: 100 * GIB,
  usedBytes: 0,
};
const ceph: Storage = { ...local, name: "ceph", type: "rbd", shared: true };

const node = (name: string, more: Partial<NodeInventory> = {}): NodeInventory => ({
  name: NodeName.parse(name),
  online: true,
  cores: 8,
  memoryBytes: 16 * GIB,
  memoryUsedBytes: 0,
  cgroup: 2,
  storages: [local, ceph],
  foreignMemoryBytes: 0,
  ...more,
});
const template = (more: Partial<Replica> = {}): Replica => ({
  name: "base",
  tags: [],
  vmid: Vmid.parse(9_001),
  node: NodeName.parse("pve1"),
  storage: "local-lvm",
  shared: false,
  unprivileged: true,
  hookscript: false,
  diskBytes: 4 * GIB,
  configHash: "now",
  memoryMib: 512,
  locked: false,
  online: true,
  ...more,
});
const copy = (of: string) =>
  template({
    vmid: Vmid.parse(20_001),
    node: NodeName.parse("pve3"),
    copyOf: { vmid: Vmid.parse(9_001), configHash: of },
  });

const FULL: NodeLoad = { ...NO_LOAD, reservedMemoryMib: 16_384 };

interface About extends Partial<Pick<Inventory, "nodes" | "replicas">> {
  loads?: Record<string, NodeLoad>;
  obstacles?: Record<string, string>;
  input?: object;
  most?: number;
}

function wish({ nodes, replicas, loads = { pve1: FULL }, obstacles = {}, input = {}, most = 2 }: About = {}) {
  const inventory: Inventory = {
    at: 0,
    version: "8.4.1",
    nodes: nodes ?? [node("pve1"), node("pve2")],
    replicas: replicas ?? [template()],
  };
  const request = { input: parseInput("provision", { template: "base", ...input }), snapshot: null, avoid: undefined };
  const facts = {
    loads: new Map(Object.entries(loads)),
    obstacles: new Map(Object.entries(obstacles)),
    settings: new Map(),
  };
  return wishReplica(request, inventory, facts, LIMITS, most);
}

test("a template whose nodes are full or cordoned is wished for where there is room", () => {
  expect(wish()).toEqual({ template: 9_001, node: "pve2" });
  expect(wish({ loads: {}, obstacles: { pve1: "cordoned" } })).toEqual({ template: 9_001, node: "pve2" });
  const nodes = [node("pve1"), node("pve2"), node("pve3")];
  const loads = { pve1: FULL, pve2: { ...NO_LOAD, reservedMemoryMib: 8_192 } };
  expect(wish({ nodes, loads })).toMatchObject({ node: "pve3" });
  const nas: Storage = { ...ceph, name: "nas", rootdir: false, backup: true };
  const three = [
    node("pve1", { storages: [local, ceph, nas] }),
    node("pve2"),
    node("pve3", { storages: [local, nas] }),
  ];
  expect(wish({ nodes: three, loads })).toMatchObject({ node: "pve2" });
  expect(wish({ nodes: three, loads, obstacles: { pve2: "cordoned" } })).toMatchObject({ node: "pve3" });
});

test("not where a slot is all that is missing, nor where it could not be brought or would be no better off", () => {
  expect(wish({ loads: { pve1: { ...NO_LOAD, jobs: 9 } } })).toBeNull();
  expect(wish({ nodes: [node("pve1"), node("pve2", { storages: [local] })] })).toBeNull();
  expect(wish({ nodes: [node("pve1"), node("pve2", { online: false })] })).toBeNull();
  expect(wish({ obstacles: { pve2: "cordoned" } })).toBeNull();
  expect(wish({ loads: { pve1: FULL, pve2: FULL } })).toBeNull();
  expect(wish({ loads: { pve1: FULL, pve2: { ...NO_LOAD, jobs: 2 } } })).toBeNull();
  expect(wish({ input: { node: "pve1" } })).toBeNull();
});

test("no more than so many, of the template as it is", () => {
  const nodes = [node("pve1"), node("pve2"), node("pve3")];
  const about = { nodes, loads: { pve1: FULL, pve3: FULL }, replicas: [template(), copy("now")] };
  expect(wish({ ...about, most: 2 })).toMatchObject({ node: "pve2" });
  expect(wish({ ...about, most: 1 })).toBeNull();
  expect(wish({ most: 0 })).toBeNull();
  // One that is stale is no replica: it will go.
  expect(wish({ ...about, replicas: [template(), copy("before")], most: 1 })).toMatchObject({ node: "pve2" });
});

test("clones go over the template's own storage where that is shared, else over one that clones linked; else archives", () => {
  const nfs: Storage = { ...ceph, name: "nfs", type: "nfs" };
  const nas: Storage = { ...nfs, name: "nas", rootdir: false, backup: true };
  const ways = (storage: string, storages: Storage[]) => {
    const nodes = [node("pve1", { storages }), node("pve2", { storages })];
    const found = waysTo({ nodes }, { node: NodeName.parse("pve1"), storage }, "pve2");
    return found.map((way) => [way.storage.name, ...(way.archive ? [way.archive] : [])].join(" over "));
  };
  expect(ways("nfs", [nfs, ceph])).toEqual(["nfs", "ceph"]);
  expect(ways("local-lvm", [nfs, ceph, local])).toEqual(["ceph", "nfs"]);
  expect(ways("local-lvm", [local, nas])).toEqual(["local-lvm over nas"]);
  expect(ways("local-lvm", [local, { ...nas, active: false }])).toEqual([]);
  expect(ways("local-lvm", [local, { ...nas, shared: false }])).toEqual([]);
});
