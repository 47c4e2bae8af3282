/** One node that answers with errors, though it counts as online, does not keep the others from being read. */
import { afterEach, beforeEach, expect, it } from "vitest";
import type { Inventory } from "../../../shared/state/inventory.ts";
import { type Collector, createCollector } from "../../../workers/inventory/collect.ts";
import { call, failure, type StandIn, startStandIn } from "./stand-in.ts";

let standIn: StandIn;
let collector: Collector;
let now: number;
beforeEach(async () => {
  standIn = await startStandIn({
    nodes: 2,
    templates: [
      { vmid: 9_001, node: "pve1" },
      { vmid: 9_002, node: "pve2" },
    ],
  });
  now = Date.now();
  collector = createCollector(standIn.api, {
    vmids: { first: 20_000, last: 29_999 },
    isCloning: async () => false,
    leased: async () => [],
    prefixes: [],
    urls: { pattern: "{service}-{id}" },
    limits: {
      ...{ slots: 4, memoryOvercommit: 1, diskOvercommit: 1, storageFullPercent: 90 },
      ...{ policy: "spread", allowPrivileged: false, vmids: { first: 20_000, last: 29_999 } },
    },
    now: () => now,
  });
});
afterEach(() => standIn[Symbol.asyncDispose]());

/** As a pveproxy without its pmxcfs answers. */
const ail = (path: string) =>
  standIn.pve.faults.request({
    kind: "refuse",
    status: 500,
    text: "ipcc_send_rec[1] failed: Connection refused",
    method: "GET",
    path,
    times: 100,
  });
const ofPve2 = ({ nodes, replicas }: Inventory) => ({
  search: nodes.find(({ name }) => name === "pve2")?.dnsSearch,
  replica: replicas.find(({ vmid }) => vmid === 9_002),
});

it("what it said before counts, its template as one that can't be used now", async () => {
  const before = await collector.collect(call(), null);
  expect(ofPve2(before)).toMatchObject({ search: "lan", replica: { online: true, memoryMib: expect.any(Number) } });
  now += 61_000; // past what is kept
  const fault = ail("/nodes/pve2/");
  const meanwhile = await collector.collect(call(), before);
  expect(ofPve2(meanwhile)).toEqual({ search: "lan", replica: { ...ofPve2(before).replica, online: false } });
  expect(meanwhile.replicas.find(({ vmid }) => vmid === 9_001)).toMatchObject({ online: true });
  fault.release();
  expect(ofPve2(await collector.collect(call(), meanwhile))).toEqual(ofPve2(before));
});

it("a first reading has the others' templates", async () => {
  ail("/nodes/pve2/");
  const first = await collector.collect(call(), null);
  expect(first.replicas).toMatchObject([
    { vmid: 9_001, online: true },
    { vmid: 9_002, online: false },
  ]);
});

it("a reading that is broken off is none", async () => {
  standIn.pve.faults.request({ kind: "hang", method: "GET", path: "/nodes/pve2/", times: 100 });
  expect(await failure(collector.collect(call(300), null))).toMatchObject({ name: "TimeoutError" });
});
