/** Workers die in the middle of what the reconcile does: the next one finishes it, nothing is done twice, and no other is touched. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { createKeys } from "../../../shared/state/keys.ts";
import { type Bed, containerOf, run, startBed, until } from "../fleet/harness.ts";
import type { WorkerProcess } from "../fleet/worker-process.ts";

let bed: Bed;
let worker: WorkerProcess;
beforeAll(async () => {
  bed = await startBed({
    workers: "none",
    redis: { engine: "process" },
    pve: { nodes: 3, timings: { resourcesLag: 0, destroy: 5_000 } },
    env: { FLEET_STRAY_GRACE_SECONDS: "0", FLEET_NODE_SLOTS: "4" },
  });
  worker = await bed.startProcess();
});
afterAll(() => bed.close());
beforeEach(() => bed.pve.faults.clear());

const PATIENCE_MS = 60_000;

/** The worker dies, what it had sent to PVE is carried out or not, and another one comes. */
async function strike(release = () => {}) {
  await worker.end("SIGKILL");
  release();
  worker = await bed.startProcess();
}

/** Holds requests of the worker at PVE's door, and strikes once the first is there. */
function strikeAt(fault: { method: string; path: string }) {
  const hang = bed.pve.faults.request({ kind: "hang", times: 100, ...fault });
  return {
    async there() {
      await until(() => hang.hits > 0, `a ${fault.method} ${fault.path}`, PATIENCE_MS);
      await strike(() => hang.release());
    },
  };
}

async function provision(count: number, node: string) {
  const batch = await bed.fleet.batch({ count, template: "cmux-base", node, metadata: { of: node } });
  const ids: string[] = [];
  for await (const item of batch.results()) ids.push(item.ok ? item.sandboxId : expect.fail(item.error.code));
  return Promise.all(
    ids.map(async (sandboxId) => ({ sandboxId, vmid: (await bed.fleet.sandboxes.get(sandboxId)).vmid ?? 0 })),
  );
}

const times = (type: string, since: number) => {
  const counts = new Map<string, number>();
  const all = bed.pve.tasks().filter((one) => one.type === type && one.startedAt >= since);
  for (const { id } of all) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
};

/** Containers that came after the end of their sandboxes, and two that are not ours to remove. */
async function makeOrphans() {
  const made = await provision(3, "pve1");
  const configs = made.map(({ vmid }) => containerOf(bed, vmid)?.config ?? {});
  for (const { sandboxId } of made) await run(bed.fleet, "destroy", { sandboxId });
  const { pve } = bed;
  const copy = (vmid: number, { description = "", net0 = "" }: Readonly<Record<string, string>>) => {
    pve.faults.occupy(vmid, "pve1");
    pve.faults.edit(vmid, { description, net0: net0.replace(/hwaddr=[^,]*/i, "hwaddr=BC:24:11:00:00:00") });
  };
  return {
    vmids: made.map(({ vmid }) => vmid),
    appear() {
      for (const [at, { vmid }] of made.entries()) copy(vmid, configs[at] ?? {});
      pve.faults.occupy(29_998, "pve1"); // a human's
      copy(29_999, configs[0] ?? {}); // a human's clone of one of ours: its stamp names another VMID
    },
  };
}

test.each([
  ["after the quarantine, at the proof", { method: "GET", path: "pve1/lxc/2\\d{4}/config$" }],
  ["after the proof, at the removal", { method: "DELETE", path: "pve1/lxc/2\\d{4}$" }],
  ["between the removals", null],
])("orphans: killed %s", { timeout: 120_000 }, async (_, fault) => {
  const orphans = await makeOrphans();
  const since = Date.now();
  const at = fault && strikeAt(fault);
  orphans.appear();
  if (at) await at.there();
  else {
    const removals = () => bed.pve.tasks().filter((one) => one.type === "vzdestroy" && one.startedAt >= since);
    await until(() => removals().some(({ endedAt }) => endedAt === undefined), "a removal", PATIENCE_MS);
    await strike();
  }
  const isOver = async () =>
    orphans.vmids.every((vmid) => containerOf(bed, vmid) === undefined) &&
    (await bed.redis.exists(bed.keys.slot("node-pve1"))) === 0;
  await until(isOver, "the removal of all", PATIENCE_MS);
  expect(times("vzdestroy", since)).toEqual(new Map(orphans.vmids.map((vmid) => [String(vmid), 1])));
  for (const vmid of [29_998, 29_999]) {
    expect(containerOf(bed, vmid)?.config["hostname"]).toBe(`human-${vmid}`);
    bed.pve.faults.vanish(vmid);
  }
  await until(async () => (await bed.redis.exists(bed.keys.strays)) === 0, "the end of the quarantine", PATIENCE_MS);
});

test.each([
  ["before they are asked for", "pve2", { method: "GET", path: "pve2/lxc/2\\d{4}/config$" }],
  ["as they start", "pve3", { method: "POST", path: "pve3/lxc/2\\d{4}/status/start$" }],
])("starts after a node's start anew: killed %s", { timeout: 120_000 }, async (_, node, fault) => {
  const made = await provision(2, node);
  await until(async () => (await bed.redis.hexists(bed.keys.boots, node)) === 1, "a round", PATIENCE_MS);
  const since = Date.now();
  const at = strikeAt(fault);
  bed.pve.faults.reboot(node);
  await at.there();
  const isUp = async () =>
    made.every(({ vmid }) => containerOf(bed, vmid)?.status === "running") &&
    (await bed.redis.zcard(bed.keys.open)) === 0;
  await until(isUp, "their start", PATIENCE_MS);
  const started = bed.pve.tasks().filter(({ type, startedAt }) => type === "vzstart" && startedAt >= since);
  expect(started.filter(({ exitstatus }) => exitstatus === "OK")).toHaveLength(made.length);
  for (const { sandboxId } of made) {
    expect((await bed.fleet.sandboxes.get(sandboxId)).state).toBe("running");
    await run(bed.fleet, "destroy", { sandboxId });
  }
});

test("a template that another has the place of: killed at its destroy, it goes once, and is asked for no more", {
  timeout: 120_000,
}, async () => {
  const [{ sandboxId } = expect.fail()] = await provision(1, "pve1");
  const { templateId, vmid } = await run(bed.fleet, "template", { sandboxId, name: "old" });
  const since = Date.now();
  const at = strikeAt({ method: "DELETE", path: `pve1/lxc/${vmid}$` });
  await bed.redis.hset(bed.keys.retired, templateId, "op_0000000000000000");
  await at.there();
  const isOver = async () =>
    containerOf(bed, vmid) === undefined &&
    (await bed.redis.exists(bed.keys.retired)) === 0 &&
    (await bed.redis.zcard(bed.keys.open)) === 0;
  await until(isOver, "its end", PATIENCE_MS);
  expect(times("vzdestroy", since)).toEqual(new Map([[String(vmid), 1]]));
  await run(bed.fleet, "destroy", { sandboxId });
});

test("a node is forgotten: killed in between", { timeout: 120_000 }, async () => {
  const made = await provision(8, "pve3");
  bed.pve.faults.node("pve3", "unreachable");
  const forgotten = bed.fleet.nodes.forget("pve3");
  const states = async () =>
    Promise.all(made.map(async ({ sandboxId }) => (await bed.fleet.sandboxes.get(sandboxId)).state));
  await until(async () => (await states()).includes("lost"), "the first of them", PATIENCE_MS);
  await strike();
  await forgotten;
  expect(new Set(await states())).toEqual(new Set(["lost"]));
  expect(await bed.redis.exists(bed.keys.reserved("pve3"))).toBe(0);
  const leased = await bed.redis.hmget(bed.keys.vmids, ...made.map(({ vmid }) => String(vmid)));
  expect(new Set(leased)).toEqual(new Set([null]));
  for (const { vmid } of made) bed.pve.faults.vanish(vmid);
  bed.pve.faults.node("pve3", "online");
});

test("records are made anew, of all teams and with all they said: killed in between", {
  timeout: 120_000,
}, async () => {
  const made = await provision(3, "pve1");
  const theirs = await bed.client({ team: "red" }).provision({
    template: "cmux-base",
    node: "pve1",
    services: [{ name: "web", port: 8_000 }],
    ttlSeconds: 5_000,
    ttlAction: "stop",
    ttlExtendOnUse: true,
    idleSeconds: 3_600,
    wakeOnHttp: true,
  });
  const { sandboxId, vmid } = await theirs.result({ timeoutMs: PATIENCE_MS });
  made.push({ sandboxId, vmid });
  await bed.fleet.pools.set("cmux-base", { min: 1, max: 1 });
  await until(async () => (await bed.fleet.pools.list())[0]?.ready === 1, "a member of the pool", PATIENCE_MS);
  const [member] = await bed.redis.zrange(bed.keys.poolReady("cmux-base"), 0, "-1");
  const spare = Number(await bed.redis.hget(bed.keys.sandbox(member ?? ""), "vmid"));
  await until(async () => (await bed.redis.exists(bed.keys.restamp, bed.keys.restamping)) === 0, "every stamp");
  const recordOf = async (id: string) => {
    const {
      stateAt: _at,
      runningAt: _since,
      createdAt: _made,
      expiresAt,
      ...record
    } = await bed.fleet.sandboxes.get(id);
    return { ...record, endsIn: expiresAt && Math.round((expiresAt - Date.now()) / 1_000_000) };
  };
  const records = () => Promise.all(made.map((one) => recordOf(one.sandboxId)));
  const before = await records();
  const { [String(spare)]: _spare, ...leases } = await bed.redis.hgetall(bed.keys.vmids);
  await bed.redis.flushall();
  const at = strikeAt({ method: "GET", path: "pve1/lxc/2\\d{4}/snapshot$" });
  const rebuilt = bed.fleet.reconcile({ rebuild: true });
  await at.there();
  // It may have been claimed the second before, so it is nobody's.
  expect((await rebuilt).find((one) => one.vmid === spare)).toMatchObject({ what: "restored", done: "left" });
  expect(await bed.redis.hgetall(createKeys(bed.keys.prefix).vmids)).toEqual(leases);
  expect(await records()).toEqual(before);
  await bed.fleet.reconcile({ removeOrphans: true });
  expect(containerOf(bed, spare)).toBeUndefined();
  for (const one of made) await run(bed.fleet, "destroy", { sandboxId: one.sandboxId });
});
