/** Nodes that do not answer, and nodes that people have cordoned: who stays away, who leaves, who stays. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import { nodeQueue } from "../../../shared/queues.ts";
import { createNodeStateStore } from "../../../shared/state/nodes.ts";
import { type Bed, failure, firstFailure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 2, timings: { unreachableDelay: 30, hungTimeout: 100 } },
    env: { FLEET_NODE_SLOTS: "2" },
  });
  await bed.startWorkers();
});
afterAll(() => bed.close());
beforeEach(() => bed.redis.del(bed.keys.breakers));
afterEach(async () => {
  bed.pve.faults.clear();
  for (const node of ["pve1", "pve2"]) await store().setCordon(node, null);
  await until(async () => (await breakerOf("pve2")) === null, "pve2 to be trusted again");
});

const store = () => createNodeStateStore(bed.redis, bed.keys);
const breakerOf = async (node: string) => (await store().load()).breakers.get(node) ?? null;
const cordon = (node: string, reason?: string) =>
  store().setCordon(node, { at: Date.now(), by: "me", ...(reason === undefined ? {} : { reason }) });

/** Waits until the breaker is open. */
const opened = () => until(async () => (await breakerOf("pve2"))?.state === "open", "an open breaker of pve2");

const waitsFor = (handle: { status(): Promise<{ waitingFor?: string | undefined }> }, what: RegExp) =>
  until(async () => what.test((await handle.status()).waitingFor ?? ""), `an operation that waits for ${what}`);

/** Two more provisions while one is at work on pve2, the only node: one waits in its queue, the other to be placed. */
async function waitBehind() {
  const input = { template: "cmux-base" };
  const queue = bed.workers?.context.queues.get(nodeQueue("pve2"));
  await queue?.pause(); // else it would not wait: placement gives out no more than there are slots
  const handles = await Promise.all([bed.fleet.provision(input), bed.fleet.provision(input)]);
  await until(async () => (await queue?.getWaitingCount()) === 1, "one that waits in the node's queue");
  return { handles, resume: () => queue?.resume() };
}

/** Requests to pve2 that were answered from now on. */
function countRequests(path: RegExp): () => number {
  const before = bed.pve.log().length;
  return () =>
    bed.pve
      .log()
      .slice(before)
      .filter((one) => path.test(one.path)).length;
}

test("a node that refuses connections: the breaker opens, the others take its work, and it is used again when it answers", async () => {
  bed.pve.faults.node("pve2", "refused");
  const handles = await Promise.all(Array.from({ length: 4 }, () => bed.fleet.provision({ template: "cmux-base" })));
  const ended = new Map<string, string>();
  const all = handles.map(async (handle) => {
    const { node } = await handle.result({ timeoutMs: 60_000 });
    ended.set(handle.id, node);
  });
  // All but the one whose clone may have been taken by the node all the same.
  await until(() => ended.size === 3, "three that ended elsewhere", 20_000);
  expect([...ended.values()]).toEqual(["pve1", "pve1", "pve1"]);
  await opened();
  const only = await bed.fleet.provision({ template: "cmux-base", node: "pve2" });
  await waitsFor(only, /^pve2: its circuit breaker is open/);
  bed.pve.faults.node("pve2", "online");
  expect(await only.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve2" });
  await Promise.all(all);
  expect(await breakerOf("pve2")).toBeNull();
});

test("while it is open nobody asks the node, and one probe asks for all workers", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { node: "pve2" });
  const since = Date.now();
  const probes = bed.pve.faults.request({ method: "GET", path: "^/nodes/pve2/lxc$", kind: "delay", ms: 300, times: 9 });
  const others = countRequests(/^\/nodes\/pve2\/(?!lxc$)/);
  await store().changeBreaker("pve2", () => ({ state: "open", since, until: since + 1_000, times: 1 }));
  const stop = await bed.fleet.power({ sandboxId, action: "stop" });
  expect(await firstFailure(stop)).toBe("node_unreachable");
  expect((await stop.status()).lastError?.facts).toMatchObject({ node: "pve2", breaker: "open" });
  expect(others()).toBe(0);
  await until(async () => (await breakerOf("pve2"))?.state === "half_open", "a probe");
  await until(async () => (await breakerOf("pve2")) === null, "a closed breaker");
  expect(probes.hits).toBe(1);
  expect(await stop.result({ timeoutMs: 60_000 })).toMatchObject({ state: "stopped" });
});

test("a probe that fails makes the pause longer; a read that the node's proxy answers closes nothing", async () => {
  const { vmid, sandboxId } = await provisionOne(bed.fleet, { node: "pve2" });
  bed.pve.faults.node("pve2", "hung");
  const call = { signal: within() };
  const pve = bed.workers?.context.pve;
  const pve2 = NodeName.parse("pve2");
  await store().changeBreaker(pve2, () => ({ state: "closed", failures: 2, since: Date.now() }));
  // The proxy answers this: whether the daemon does is another matter.
  await pve?.lxc(pve2, Vmid.parse(vmid)).config(call);
  expect(await breakerOf(pve2)).toMatchObject({ failures: 2 });
  await failure(pve?.list(pve2, call) ?? Promise.resolve(), "node_unreachable");
  const again = await until(async () => {
    const breaker = await breakerOf("pve2");
    return breaker?.state === "open" && breaker.times === 2 ? breaker : null;
  }, "a second pause");
  expect(again.until - Date.now()).toBeGreaterThan(2_500);
  // Commands do not need PVE: they run all the same.
  await run(bed.fleet, "exec", { sandboxId, command: "true" });
  bed.pve.faults.node("pve2", "online");
});

test("what waits in the queue of a node that went silent is placed elsewhere, behind a clone of unknown fate that stays", async () => {
  await cordon("pve1");
  const lost = bed.pve.faults.request({ method: "POST", path: "/clone$", kind: "lose-reply", as: 596 });
  const stays = await bed.fleet.provision({ template: "cmux-base" });
  await until(() => lost.hits === 1, "a lost reply");
  const { handles: leaves, resume } = await waitBehind();
  bed.pve.faults.node("pve2", "refused");
  expect(await firstFailure(stays)).toMatch(/outcome_unknown|node_unreachable/);
  await opened();
  await store().setCordon("pve1", null);
  for (const handle of leaves) expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve1" });
  await resume();
  bed.pve.faults.node("pve2", "online");
  const { sandboxId } = await stays.result({ timeoutMs: 60_000 });
  const made = bed.pve.containers().filter(({ config }) => config["description"]?.includes(sandboxId));
  expect(made).toMatchObject([{ node: "pve2", status: "running" }]);
});

test("a cordoned node gets nothing new; what waits in its queue leaves, what runs there is not disturbed", async () => {
  await cordon("pve1", "new disk");
  const held = bed.pve.faults.request({ method: "POST", path: "/status/start$", kind: "hang" });
  const stays = await bed.fleet.provision({ template: "cmux-base" });
  await until(() => held.hits === 1, "a start that hangs");
  const nowhere = await bed.fleet.provision({ template: "cmux-base", node: "pve1" });
  await waitsFor(nowhere, /^pve1: cordoned \(new disk\)$/);
  const { handles: leaves, resume } = await waitBehind();
  await cordon("pve2");
  await store().setCordon("pve1", null);
  for (const handle of leaves) {
    expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve1" });
    expect(await handle.status()).toMatchObject({ attempts: 0 });
  }
  expect(await nowhere.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve1" });
  await resume();
  held.release();
  const { sandboxId } = await stays.result({ timeoutMs: 60_000 });
  expect((await stays.status()).sandbox.node).toBe("pve2");
  // All but placing goes on there.
  await run(bed.fleet, "exec", { sandboxId, command: "true" });
  await run(bed.fleet, "destroy", { sandboxId });
});

test("a node that refuses for good is left for the other one, and where there is none the error says why", async () => {
  const full = { method: "POST", path: "^/nodes/pve2/.*/clone$", kind: "refuse", status: 500 } as const;
  bed.pve.faults.request({ ...full, text: "no space left on device", times: 100 });
  await cordon("pve1");
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  expect(await firstFailure(handle)).toBe("storage_full");
  await waitsFor(handle, /pve2: it refused this one just now/);
  await store().setCordon("pve1", null);
  expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve1" });
  const pinned = await bed.fleet.provision({ template: "cmux-base", node: "pve2" });
  expect((await failure(pinned.result({ timeoutMs: 60_000 }), "storage_full")).facts["node"]).toBe("pve2");
});

test("a template that a backup holds locked is left for one on another node", async () => {
  await cordon("pve1");
  const [template] = bed.pve.containers().filter(({ node, template: is }) => is && node === "pve2");
  bed.pve.faults.lock(template?.vmid ?? 0, "backup");
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  expect(await firstFailure(handle)).toBe("source_locked");
  await store().setCordon("pve1", null);
  expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve1" });
  bed.pve.faults.lock(template?.vmid ?? 0, null);
});
