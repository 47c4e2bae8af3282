/** Pools: sandboxes that are made before they are asked for, and given out whole and once. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { TeamId } from "../../../shared/ids.ts";
import { loadMembers } from "../../../workers/pool/probe.ts";
import { type Bed, containerOf, firstFailure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
const warmOnes = async () => {
  if (!bed.workers) throw new Error("no workers");
  return (await loadMembers(bed.workers.context)).filter(({ state }) => state === "warm");
};

beforeAll(async () => {
  bed = await startBed();
});
afterAll(() => bed.close());

const TEMPLATE = "cmux-base";
const ready = async (count: number) =>
  until(async () => (await bed.redis.zcount(bed.keys.poolReady(TEMPLATE), "(0", "+inf")) >= count, `${count} ready`);

test("a pool is filled, and a provision gets a member of it, with all that it asked for", async () => {
  await bed.fleet.pools.set(TEMPLATE, { min: 2, max: 3 });
  await ready(2);
  expect(await bed.fleet.sandboxes.list()).toEqual([]);
  const made = await provisionOne(bed.fleet, {
    metadata: { app: "web" },
    env: { WORD: "hello" },
    services: [{ name: "web", port: 8_000 }],
    ttlSeconds: 3_600,
  });
  expect(made).toMatchObject({ warm: true, services: [{ name: "web" }] });
  expect(made.timings).not.toHaveProperty("clone");
  const record = await bed.fleet.sandboxes.get(made.sandboxId);
  expect(record).toMatchObject({ state: "running", team: "default", vmid: made.vmid, metadata: { app: "web" } });
  expect(record.expiresAt).toBeGreaterThan(Date.now() + 3_000_000);
  expect(containerOf(bed, made.vmid)?.status).toBe("running");
  const { stdout } = await run(bed.fleet, "exec", { sandboxId: made.sandboxId, command: "echo $WORD" });
  expect(stdout).toBe("hello\n");
  await run(bed.fleet, "destroy", { sandboxId: made.sandboxId });
  expect(containerOf(bed, made.vmid)).toBeUndefined();
  await ready(2);
  expect(await bed.fleet.pools.list()).toMatchObject([{ template: TEMPLATE, target: 2, ready: 2, asked: 1, hits: 1 }]);
});

test("one that does not answer is not given out, nor one that was ready before Redis was started", async () => {
  const { context } = bed.workers ?? {};
  if (!context) throw new Error("no workers");
  const [first, second] = await warmOnes();
  if (first?.vmid === undefined || second === undefined) throw new Error("no members");
  bed.pve.faults.freeze(first.vmid);
  await bed.redis.hset(bed.keys.sandbox(second.id), "warmOn", "an earlier one");
  const made = await provisionOne(bed.fleet);
  expect(made.warm).toBe(false);
  bed.pve.faults.unfreeze(first.vmid);
  await run(bed.fleet, "destroy", { sandboxId: made.sandboxId });
  await until(async () => (await bed.fleet.sandboxes.get(second.id)).state === "destroyed", "the end of the second");
});

test("whoever had claimed a member that Redis has as nobody's gets it back, by its stamp", async () => {
  const { context } = bed.workers ?? {};
  if (!context) throw new Error("no workers");
  await ready(2);
  await bed.fleet.quotas.set("default", { sandboxes: 1 });
  const blocker = await provisionOne(bed.fleet, { node: "pve1" });
  const handle = await bed.fleet.provision({ template: TEMPLATE }, { onQuota: "wait" });
  const [member] = await warmOnes();
  if (member?.vmid === undefined || member.node === undefined) throw new Error("no member");
  // As it would be had the claim come before the loss, and the stamp after it.
  const lxc = context.pve.lxc(member.node, member.vmid);
  const { description = "" } = await lxc.config({ signal: within() });
  const named = description.replace(member.id, handle.sandboxId).replace(member.operation, handle.id);
  await lxc.setConfig({ description: named }, { signal: within() });
  await bed.redis.hset(bed.keys.sandbox(member.id), "warmOn", "an earlier one");
  await until(async () => (await bed.redis.hexists(bed.keys.poolsOwned, handle.sandboxId)) === 1, "its owner");
  await bed.fleet.quotas.remove("default");
  await run(bed.fleet, "destroy", { sandboxId: blocker.sandboxId });
  expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ warm: true, vmid: member.vmid });
  await run(bed.fleet, "exec", { sandboxId: handle.sandboxId, command: "true" });
  await run(bed.fleet, "destroy", { sandboxId: handle.sandboxId });
});

test("a claim that Redis refuses is tried again, and ends nothing else", async () => {
  await ready(2);
  const templates = bed.keys.templates(TeamId.parse("unread"));
  await bed.redis.set(templates, "no hash");
  const handle = await bed.client({ team: "unread" }).provision({ template: TEMPLATE });
  expect(await firstFailure(handle)).toBe("internal");
  await bed.redis.del(templates);
  expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ warm: true });
  await run(bed.fleet, "destroy", { sandboxId: handle.sandboxId });
});

test("an instance id is no hindrance: it is found by that, and keeps the host name that it has", async () => {
  await ready(2);
  const made = await provisionOne(bed.fleet, { instanceId: "pvelxc-1a2b3c4d" });
  expect(made).toMatchObject({ warm: true, hostname: `cmux-${made.vmid}` });
  expect(await bed.fleet.sandboxes.get("pvelxc-1a2b3c4d")).toMatchObject({ id: made.sandboxId, vmid: made.vmid });
  await until(() => containerOf(bed, made.vmid)?.config["description"]?.includes("pvelxc-1a2b3c4d"), "its stamp");
  await run(bed.fleet, "destroy", { sandboxId: made.sandboxId });
});

test("members go with a cordon, and where their template has changed", async () => {
  await ready(2);
  const areGone = async (ids: readonly string[]) => {
    const states = await Promise.all(ids.map(async (id) => (await bed.fleet.sandboxes.get(id)).state));
    return states.every((state) => state === "destroyed");
  };
  const [first] = await warmOnes();
  if (first?.node === undefined) throw new Error("no member");
  const progress: string[][] = [];
  await bed.fleet.nodes.drain(first.node, {
    by: "the test",
    onProgress: ({ sandboxes }) => progress.push(sandboxes.map(({ id }) => id)),
  });
  expect(progress[0]).toContain(first.id);
  expect(await areGone([first.id])).toBe(true);
  await bed.fleet.nodes.uncordon(first.node);
  await ready(2);
  const older = (await warmOnes()).map(({ id }) => id);
  for (const id of older) await bed.redis.hset(bed.keys.sandbox(id), "madeOf", "9001 as it was");
  await until(() => areGone(older), "their end", 20_000);
  await ready(2);
});

test("a pool that is removed takes its members along, and its counts later; set again it is filled at once", async () => {
  const remove = async () => {
    expect(await bed.fleet.pools.remove(TEMPLATE)).toBe(true);
    const isEmpty = () => bed.pve.containers().every(({ config }) => !config["description"]?.includes("fleet-pool"));
    await until(isEmpty, "no members");
    await until(async () => (await bed.fleet.sandboxes.list({ team: "fleet-pool" })).length === 0, "no records");
    expect(await bed.redis.ttl(bed.keys.poolCounts(TEMPLATE))).toBeGreaterThan(0);
  };
  await remove();
  await bed.redis.del(bed.keys.poolCounts(TEMPLATE));
  await bed.fleet.pools.set(TEMPLATE, { min: 1, max: 1 });
  await ready(1);
  // None of those of before passed for it.
  expect(Number(await bed.redis.hget(bed.keys.poolCounts(TEMPLATE), "fills"))).toBe(1);
  expect(await bed.redis.ttl(bed.keys.poolCounts(TEMPLATE))).toBe(-1);
  await remove();
});
