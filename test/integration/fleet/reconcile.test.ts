/** What somebody did behind our back is taken into the records; what ran when its node went down is started again. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Finding } from "../../../producers/index.ts";
import { clearForgottenNodes } from "../../../workers/control/clear-nodes.ts";
import { Client } from "../../pve/client.ts";
import { command } from "../command.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  // No whole number of seconds.
  const env = { FLEET_RETENTION_HOURS: "1.1" };
  bed = await startBed({ pve: { nodes: 3, timings: { resourcesLag: 0 } }, ssh: {}, env });
});
afterAll(async () => {
  // Each kind of finding is counted.
  const text = (await bed.workers?.context.metrics.registry.metrics()) ?? "";
  for (const action of ["lost", "drift", "restarted", "locked", "unlocked"])
    expect(text).toMatch(new RegExp(`^fleet_reconcile_actions_total\\{action="${action}"\\} [1-9]`, "m"));
  await bed.close();
});

const stateOf = async (id: string) => (await bed.fleet.sandboxes.get(id)).state;
const becomes = (id: string, state: string) =>
  until(async () => (await stateOf(id)) === state, `${id} to be ${state}`, 20_000);

test("ghosts end as lost; what is stopped, started, renamed, resized or moved is taken in, with events", async () => {
  const made = await Promise.all([1, 2, 3, 4].map(() => provisionOne(bed.fleet, { node: "pve1" })));
  const [gone, stopped, changed, replaced] = made;
  if (!gone || !stopped || !changed || !replaced) throw new Error("unreachable");
  await run(bed.fleet, "power", { sandboxId: changed.sandboxId, action: "stop" });
  const events = bed.fleet.events({ sandbox: changed.sandboxId, types: ["sandbox.updated"] });
  bed.pve.faults.vanish(gone.vmid);
  bed.pve.faults.vanish(replaced.vmid);
  bed.pve.faults.occupy(replaced.vmid, "pve1");
  bed.pve.faults.crash(stopped.vmid);
  bed.pve.faults.edit(changed.vmid, { hostname: "renamed", memory: "1024" });
  bed.pve.faults.move(changed.vmid, "pve2");
  await bed.fleet.reconcile();
  await Promise.all([becomes(gone.sandboxId, "lost"), becomes(stopped.sandboxId, "stopped")]);
  expect(await bed.redis.hexists(bed.keys.vmids, String(gone.vmid))).toBe(0);
  // A human's container has its VMID.
  await becomes(replaced.sandboxId, "lost");
  expect(containerOf(bed, replaced.vmid)?.config["hostname"]).toBe(`human-${replaced.vmid}`);
  bed.pve.faults.vanish(replaced.vmid);
  for await (const event of events) {
    expect(event).toMatchObject({ data: { fields: ["node", "hostname", "resources"] } });
    break;
  }
  expect(await bed.fleet.sandboxes.get(changed.sandboxId)).toMatchObject({ node: "pve2", hostname: "renamed" });
  expect(await bed.redis.hexists(bed.keys.reserved("pve1"), changed.sandboxId)).toBe(0);
  await run(bed.fleet, "power", { sandboxId: changed.sandboxId, action: "start" });
  // Nothing else about it: PVE's list alone tells.
  const reserved = async () => bed.redis.hget(bed.keys.reserved("pve2"), changed.sandboxId);
  expect(await reserved()).toContain('"memoryMib":1024');
  const { rootfs = "" } = containerOf(bed, changed.vmid)?.config ?? {};
  bed.pve.faults.edit(changed.vmid, { rootfs: rootfs.replace(/size=\w+/, "size=77G") });
  await bed.fleet.reconcile();
  expect(await reserved()).toContain(":77");
  bed.pve.faults.edit(changed.vmid, { memory: "2048" });
  await bed.fleet.reconcile();
  expect(await reserved()).toContain('"memoryMib":2048');
  const resourcesOf = async () => (await bed.fleet.sandboxes.get(changed.sandboxId)).resources;
  const { cores } = (await resourcesOf()) ?? {};
  expect(cores).toBe(Number(containerOf(bed, changed.vmid)?.config["cores"]));
  // Swap is not in the list, and comes with what is.
  bed.pve.faults.edit(changed.vmid, { cores: "7", swap: "100" });
  await bed.fleet.reconcile();
  expect(await resourcesOf()).toEqual({ cores: 7, memoryMib: 2_048, swapMib: 100, diskGib: 77 });
  bed.pve.faults.edit(changed.vmid, { cores: null, cpulimit: null });
  await bed.fleet.reconcile();
  expect(await resourcesOf()).toMatchObject({ cores: 0 });
  await run(bed.fleet, "configure", { sandboxId: changed.sandboxId, cores: 3, swapMib: 64 });
  expect(await resourcesOf()).toMatchObject({ cores: 3, swapMib: 64 });
  for (const { sandboxId } of [stopped, changed]) await run(bed.fleet, "destroy", { sandboxId });
});

test("after its node's start anew what ran there runs again, however soon that goes down once more; what was stopped stays so", async () => {
  const [ran, rested] = await Promise.all([1, 2].map(() => provisionOne(bed.fleet, { node: "pve3" })));
  if (!ran || !rested) throw new Error("unreachable");
  await run(bed.fleet, "power", { sandboxId: rested.sandboxId, action: "stop" });
  await until(async () => (await bed.redis.hexists(bed.keys.boots, "pve3")) === 1, "a round");
  // An orderly shutdown stops all first: that is nobody's wish for this one.
  await bed.pve.faults.shutDown("pve3");
  const found = await bed.fleet.reconcile();
  expect(found.filter(({ sandbox }) => sandbox === ran.sandboxId)).toMatchObject([{ what: "restart", done: "waits" }]);
  expect(await stateOf(ran.sandboxId)).toBe("running");
  const marked = () => bed.redis.smembers(bed.keys.restarts);
  const isUp = () => containerOf(bed, ran.vmid)?.status === "running";
  // The last two count as one.
  for (const agoMs of [70_000, 0, 0]) {
    bed.pve.faults.reboot("pve3", agoMs);
    await bed.fleet.reconcile();
    await until(async () => isUp() && (await bed.redis.zcard(bed.keys.open)) === 0, "its start", 30_000);
    await bed.fleet.reconcile();
    expect(await marked()).toEqual(agoMs > 0 ? [] : [ran.sandboxId]);
  }
  expect(await stateOf(ran.sandboxId)).toBe("running");
  expect([await stateOf(rested.sandboxId), containerOf(bed, rested.vmid)?.status]).toEqual(["stopped", "stopped"]);
  expect((await run(bed.fleet, "exec", { sandboxId: ran.sandboxId, command: "true" })).exitCode).toBe(0);
  await run(bed.fleet, "power", { sandboxId: ran.sandboxId, action: "stop" });
  expect(await marked()).toEqual([]);
  for (const { sandboxId } of [ran, rested]) await run(bed.fleet, "destroy", { sandboxId });
});

const cliEnv = () => ({
  REDIS_URL: bed.redisServer.urlFor("producer"),
  FLEET_PREFIX: bed.keys.prefix,
  FLEET_SECRET_KEY: bed.env["FLEET_SECRET_KEY"],
});

/** As if it had been seen that long ago, and once more without a task. */
const age = async (vmid: number) => {
  const seen = await until(() => bed.redis.hget(bed.keys.locks, String(vmid)), "the lock to be seen");
  await bed.redis.hset(bed.keys.locks, String(vmid), JSON.stringify({ ...JSON.parse(seen), lookAt: 0 }));
};

test("a lock that no task holds is told once with the command, or cleared where it is ours; one at work is let be", async () => {
  const [backup, ours, held] = await Promise.all([1, 2, 3].map(() => provisionOne(bed.fleet, { node: "pve1" })));
  if (!backup || !ours || !held) throw new Error("unreachable");
  const events = bed.fleet.events({ after: "$", types: ["container.locked", "container.unlocked"] });
  await using human = new Client(bed.pve);
  const task = bed.pve.faults.task({ type: "vzsnapshot", hold: true });
  await human.data("POST", `/nodes/pve1/lxc/${held.vmid}/snapshot`, { snapname: "mine" });
  bed.pve.faults.lock(backup.vmid, "backup");
  bed.pve.faults.lock(ours.vmid, "snapshot");
  await bed.fleet.reconcile();
  for (const { vmid } of [backup, ours, held]) await age(vmid);
  for (let round = 0; round < 2; round++) await bed.fleet.reconcile();
  const told = [(await events.next()).value, (await events.next()).value];
  expect(told.find((event) => event?.sandbox === backup.sandboxId)).toMatchObject({
    type: "container.locked",
    data: { node: "pve1", lock: "backup", text: expect.stringContaining(`on pve1: pct unlock ${backup.vmid}`) },
  });
  expect(told.find((event) => event?.sandbox === ours.sandboxId)).toMatchObject({ type: "container.unlocked" });
  expect([ours, backup, held].map(({ vmid }) => containerOf(bed, vmid)?.lock)).toEqual([
    undefined,
    "backup",
    "snapshot",
  ]);
  const { code, out } = await command(cliEnv(), "reconcile", "--dry-run");
  expect([code, out]).toEqual([0, expect.stringMatching(/1 lock left\n$/)]);
  expect(out).toMatch(new RegExp(`^lock +pve1 +${backup.vmid} .* left .*on pve1: pct unlock ${backup.vmid}`, "m"));
  const rebuilt = await command(cliEnv(), "reconcile", "--rebuild", "--dry-run");
  expect(rebuilt.out).toBe("PVE and the records agree\n");
  await age(backup.vmid);
  await bed.fleet.reconcile();
  bed.pve.faults.lock(backup.vmid, null);
  await bed.fleet.reconcile();
  expect(await bed.redis.hexists(bed.keys.locks, String(backup.vmid))).toBe(0);
  const all = await bed.redis.xrange(bed.keys.events, "-", "+");
  expect(all.filter(([, fields]) => fields.includes("container.locked"))).toHaveLength(1);
  task.release();
  await until(() => containerOf(bed, held.vmid)?.lock === undefined, "the snapshot");
  for (const { sandboxId } of [backup, ours, held]) await run(bed.fleet, "destroy", { sandboxId });
});

test("a node is forgotten only when it is no more: its sandboxes are lost, with all that was to be done to them", async () => {
  const [{ sandboxId, vmid }, moved] = await Promise.all([
    provisionOne(bed.fleet, { node: "pve2" }),
    provisionOne(bed.fleet, { node: "pve2" }),
  ]);
  const error = await failure(bed.fleet.nodes.forget("pve2"), "invalid_input");
  expect(error.text).toContain("pve2 is online");
  const exec = await bed.fleet.exec({ sandboxId, command: "sleep 1000", timeoutMs: 600_000 });
  await until(async () => (await exec.status()).status === "running", "the command");
  const hang = bed.pve.faults.request({ kind: "hang", method: "POST", path: "pve2/lxc/\\d+/clone$", times: 10 });
  const provision = await bed.fleet.provision({ template: "cmux-base", node: "pve2" });
  await until(() => hang.hits > 0, "its clone");
  bed.pve.faults.node("pve2", "unreachable");
  const [snapshot, rest, destroy] = [
    await bed.fleet.snapshot({ sandboxId }),
    await bed.fleet.power({ sandboxId, action: "stop" }),
    await bed.fleet.destroy({ sandboxId: moved.sandboxId }),
  ];
  // A human gives the config of one to another node, as one does with shared storage; rounds leave it alone until its snapshot is made.
  const other = await provisionOne(bed.fleet, { node: "pve1" });
  const task = bed.pve.faults.task({ type: "vzsnapshot", vmid: other.vmid, hold: true });
  const busy = await bed.fleet.snapshot({ sandboxId: other.sandboxId });
  const isAtIt = () => bed.pve.tasks().some(({ type, id }) => type === "vzsnapshot" && id === String(other.vmid));
  await until(isAtIt, "its snapshot");
  await bed.redis.hset(bed.keys.sandbox(other.sandboxId), "node", "pve2");
  const { code, out } = await command(cliEnv(), "node", "forget", "pve2", "--yes", "--json");
  expect(code).toBe(1); // one waits
  const found: Finding[] = JSON.parse(out).findings;
  expect(new Map(found.map(({ sandbox, done }) => [sandbox, done]))).toEqual(
    new Map([
      [sandboxId, "taken in"],
      [moved.sandboxId, "taken in"],
      [provision.sandboxId, "taken in"],
      [other.sandboxId, "waits"],
    ]),
  );
  for (const handle of [exec, provision, snapshot, rest])
    expect((await failure(handle.result({ timeoutMs: 5_000 }), "sandbox_gone")).text).toContain("pve2 is no more");
  expect(await destroy.result({ timeoutMs: 5_000 })).toEqual({ destroyed: true, existed: false });
  for (const id of [sandboxId, moved.sandboxId, provision.sandboxId]) expect(await stateOf(id)).toBe("lost");
  hang.release();
  task.release();
  await busy.result({ timeoutMs: 60_000 });
  await bed.fleet.reconcile();
  const isBack = async () => (await bed.fleet.sandboxes.get(other.sandboxId)).node === "pve1";
  await until(isBack, "where it stands");
  expect(await stateOf(other.sandboxId)).toBe("running");
  expect(await bed.redis.exists(bed.keys.reserved("pve2"))).toBe(0);
  for (const one of [vmid, moved.vmid]) bed.pve.faults.vanish(one);
  bed.pve.faults.node("pve2", "online");
  await run(bed.fleet, "destroy", { sandboxId: other.sandboxId });
});

test("of a node that was forgotten and has left the cluster nothing is kept, once nobody can ask about it", async () => {
  const { context } = bed.workers ?? expect.fail();
  const { sandboxId } = await provisionOne(bed.fleet, { node: "pve3" });
  await run(bed.fleet, "exec", { sandboxId, command: "true" });
  await bed.fleet.nodes.set("pve3", { labels: ["gpu"] });
  await bed.fleet.nodes.cordon("pve3", { by: "the test" });
  bed.pve.faults.node("pve3", "unreachable");
  await bed.fleet.nodes.forget("pve3");
  for (const { vmid, node } of bed.pve.containers()) if (node === "pve3") bed.pve.faults.vanish(vmid);
  const isKnown = async (online: boolean) =>
    (await context.inventory.refresh(within())).nodes.some((one) => one.name === "pve3" && one.online === online);
  await until(() => isKnown(false), "a reading");
  const inDays = Date.now() + 172_800_000;
  await clearForgottenNodes(context, inDays);
  expect(await bed.redis.sismember(bed.keys.nodes, "pve3")).toBe(1); // still of the cluster
  bed.pve.faults.expel("pve3");
  await until(async () => !(await isKnown(false)), "its end");
  await clearForgottenNodes(context);
  expect(await bed.redis.sismember(bed.keys.nodes, "pve3")).toBe(1); // what was lost there may be asked about
  expect(await run(bed.fleet, "destroy", { sandboxId })).toMatchObject({ destroyed: true });
  await until(async () => {
    await clearForgottenNodes(context, inDays);
    return (await bed.redis.exists(bed.keys.nodesForgotten)) === 0;
  }, "the end of its last job");
  const left: string[] = [];
  for (const key of await bed.redis.keys(`${bed.keys.prefix}:*`)) {
    const isHash = (await bed.redis.type(key)) === "hash" && !/:(op|sbx):/.test(key);
    const fields = isHash ? await bed.redis.hkeys(key) : [];
    if ([key, ...fields].some((text) => text.includes("pve3")) && (await bed.redis.ttl(key)) < 0) left.push(key);
  }
  expect(left).toEqual([]);
  expect(await bed.redis.sismember(bed.keys.nodes, "pve3")).toBe(0);
});
