/** How long sandboxes live: what workers allow, extensions, warnings, and ends that come in time. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { nodeQueue } from "../../../shared/queues.ts";
import { all, type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { FLEET_TTL_DEFAULT_SECONDS: "3600", FLEET_TTL_MAX_SECONDS: "7200", FLEET_IDLE_SECONDS: "600" },
  });
});
afterAll(() => bed.close());

const secondsLeft = async (id: string) => {
  const { expiresAt } = await bed.fleet.sandboxes.get(id);
  return expiresAt === undefined ? null : Math.round((expiresAt - Date.now()) / 1_000);
};
/** Rounded, and a slow machine. */
const about = (seconds: number) => ({
  asymmetricMatch: (left: unknown) => typeof left === "number" && left <= seconds && left > seconds - 20,
});

test("a provision that names no TTL has the default; more than the maximum is refused before anything is accepted", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  expect(await secondsLeft(sandboxId)).toEqual(about(3_600));
  const long = await failure(bed.fleet.provision({ template: "cmux-base", ttlSeconds: 7_201 }), "invalid_input");
  expect(long.text).toMatch(/^ttlSeconds: 7201 is too long; ask for at most 7200, the workers' FLEET_TTL_MAX_SECONDS/);
  expect(long.facts).toMatchObject({ fields: ["ttlSeconds"], maxSeconds: 7_200 });
  await failure(bed.fleet.update({ sandboxId, ttlSeconds: 7_201 }), "invalid_input");
  await failure(bed.fleet.update({ sandboxId, ttlSeconds: 7_201, extend: true }), "invalid_input");
  expect((await failure(bed.fleet.update({ sandboxId, ttlSeconds: null }), "invalid_input")).text).toMatch(
    /^ttlSeconds: null/,
  );
  const extension = await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 7_201 }), "invalid_input");
  expect(extension).toMatchObject({
    text: expect.stringMatching(/^seconds: 7201 is too long/),
    facts: { fields: ["seconds"] },
  });
  expect(await bed.redis.zcard(bed.keys.open)).toBe(0);
  expect(await bed.redis.zcard(bed.keys.sandboxes)).toBe(1);
  const batch = await bed.fleet.batch([{ kind: "provision", input: { template: "cmux-base", ttlSeconds: 8_000 } }]);
  expect((await batch.result({ timeoutMs: 60_000 })).counts).toMatchObject({ failedByCode: { invalid_input: 1 } });
  await run(bed.fleet, "update", { sandboxId, ttlSeconds: 7_200 });
  expect(await secondsLeft(sandboxId)).toEqual(about(7_200));
});

test("a branch of one whose TTL is over a maximum that was lowered since gets the maximum", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { ttlSeconds: 7_000 });
  await bed.redis.hset(bed.keys.sandbox(sandboxId), "ttlSeconds", 90_000); // as before
  const batch = await bed.fleet.branch({ sandboxId, count: 1 });
  const [copy] = await all(batch.results());
  if (!copy?.ok) throw copy?.error;
  expect(await secondsLeft(copy.sandboxId)).toEqual(about(7_200));
});

test("a provision that names no idle time has the default, from its start; one that says never, or an own, has not", async () => {
  const given = [undefined, null, 900].map((idleSeconds) => provisionOne(bed.fleet, { idleSeconds }));
  const [named, never, own] = (await Promise.all(given)).map(({ sandboxId }) => sandboxId);
  const idleOf = async (id = "") => (await bed.fleet.sandboxes.get(id)).idleSeconds;
  const lookIn = async (id = "") => (Number(await bed.redis.zscore(bed.keys.idle, id)) - Date.now()) / 1_000;
  expect([await idleOf(named), await idleOf(never), await idleOf(own)]).toEqual([600, undefined, 900]);
  expect([await lookIn(named), await lookIn(own)]).toEqual([about(600), about(900)]);
  expect(await bed.redis.zscore(bed.keys.idle, never ?? "")).toBeNull();
  await run(bed.fleet, "update", { sandboxId: named ?? "", idleSeconds: null });
  await run(bed.fleet, "power", { sandboxId: named ?? "", action: "reboot" });
  expect(await idleOf(named)).toBeUndefined();
});

test("an extension moves an end only later, at once, and not once the end has begun", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { ttlSeconds: 100 });
  expect(await bed.fleet.sandboxes.extend(vmid, { seconds: 50 })).toEqual({
    expiresAt: (await bed.fleet.sandboxes.get(sandboxId)).expiresAt,
  });
  const events = bed.fleet.events({ sandbox: sandboxId, types: ["sandbox.updated"] });
  await bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 });
  expect(await secondsLeft(sandboxId)).toEqual(about(500));
  expect((await events.next()).value).toMatchObject({ data: { fields: ["ttl"] } });
  expect((await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 5 }), "invalid_input")).text).toMatch(
    /^seconds: /,
  );
  await failure(bed.client({ team: "others" }).sandboxes.extend(sandboxId, { seconds: 500 }), "sandbox_not_found");
  // Its destroy has to wait for a slot.
  bed.pve.faults.lock(vmid, "backup");
  const destroy = await bed.fleet.destroy({ sandboxId });
  const late = await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 }), "sandbox_gone");
  expect(late.text).toContain("is being destroyed");
  bed.pve.faults.lock(vmid, null);
  await destroy.result({ timeoutMs: 60_000 });
  expect((await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 }), "sandbox_gone")).text).toContain(
    "has ended",
  );
});

test("a warning comes once before each end, and anew for one that was extended; followers and the CLI get it", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { ttlSeconds: 1_000, ttlAction: "stop" });
  const warnAt = async () => Number(await bed.redis.zscore(bed.keys.expiring, sandboxId));
  const { expiresAt = 0 } = await bed.fleet.sandboxes.get(sandboxId);
  expect(expiresAt - (await warnAt())).toBe(300_000);
  const events = bed.fleet.events({ after: "$", sandbox: sandboxId, types: ["sandbox.expiring", "sandbox.updated"] });
  const first = events.next();
  await bed.redis.zadd(bed.keys.expiring, 1, sandboxId);
  expect((await first).value).toMatchObject({ type: "sandbox.expiring", data: { expiresAt, action: "stop" } });
  expect(await bed.redis.zscore(bed.keys.expiring, sandboxId)).toBeNull();
  const later = await bed.fleet.sandboxes.extend(sandboxId, { seconds: 2_000 });
  expect((await events.next()).value).toMatchObject({ type: "sandbox.updated" });
  expect((later.expiresAt ?? 0) - (await warnAt())).toBe(300_000);
  // Of an end that is near, not before half of what is left.
  await run(bed.fleet, "update", { sandboxId, ttlSeconds: 40 });
  expect((await warnAt()) - Date.now()).toBeGreaterThan(10_000);
});

test("a stop that waits for its turn lets a sandbox be that was extended meanwhile", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { ttlSeconds: 3_600, ttlAction: "stop" });
  const queue = bed.workers?.context.queues.get(nodeQueue("pve1")) ?? expect.fail();
  await queue.pause();
  await bed.redis.hset(bed.keys.sandbox(sandboxId), "expiresAt", Date.now() - 1);
  await bed.redis.zadd(bed.keys.expiries, Date.now() - 1, sandboxId);
  const [id = ""] = await until(async () => {
    const asked = await bed.redis.lrange(bed.keys.changes(sandboxId), 0, -1);
    return asked.length > 0 ? asked : null;
  }, "the stop");
  await bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 });
  await queue.resume();
  const stop = await bed.fleet.operation(id);
  expect(await stop.result({ timeoutMs: 60_000 })).toEqual({ state: "running", changed: false });
  expect(containerOf(bed, vmid)?.status).toBe("running");
  expect(await secondsLeft(sandboxId)).toEqual(about(500));
});

test("ttlExtendOnUse: each use gives all of the TTL again, and what is at work in it is not cut short", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { ttlSeconds: 1_000, ttlExtendOnUse: true });
  const setEnd = async (at: number) => {
    await bed.redis.hset(bed.keys.sandbox(sandboxId), "expiresAt", at);
    await bed.redis.zadd(bed.keys.expiries, at, sandboxId);
  };
  await setEnd(Date.now() + 100_000);
  await run(bed.fleet, "update", { sandboxId, metadata: { a: "1" } }); // no use
  expect(await secondsLeft(sandboxId)).toEqual(about(100));
  const exec = await bed.fleet.exec({ sandboxId, command: "read line", stdin: "", timeoutMs: 20_000 });
  expect(await secondsLeft(sandboxId)).toEqual(about(1_000));
  await exec.result({ timeoutMs: 60_000 });
  const sleep = await bed.fleet.exec({ sandboxId, command: "sleep 60", timeoutMs: 60_000 });
  await setEnd(Date.now() - 1);
  await until(async () => ((await secondsLeft(sandboxId)) ?? 0) > 900, "a longer life");
  await sleep.cancel();
  await failure(sleep.result({ timeoutMs: 60_000 }), "canceled");
  await run(bed.fleet, "power", { sandboxId, action: "stop" });
  await setEnd(Date.now() + 100_000);
  await run(bed.fleet, "power", { sandboxId, action: "start" });
  expect(await secondsLeft(sandboxId)).toEqual(about(1_000));
  await run(bed.fleet, "update", { sandboxId, ttlExtendOnUse: false });
  await setEnd(Date.now() + 100_000);
  await run(bed.fleet, "exec", { sandboxId, command: "true" });
  expect(await secondsLeft(sandboxId)).toEqual(about(100));
});
