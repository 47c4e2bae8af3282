/** The fleet's clockwork, on records alone: neither a failure nor a bad record nor a second worker gets in its way. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { newSandboxId, type OperationId, type SandboxId, TeamId } from "../../../shared/ids.ts";
import { nodeQueue, PLACE } from "../../../shared/queues.ts";
import { createApiKeyStore } from "../../../shared/state/api-keys.ts";
import type { WorkerContext } from "../../../workers/context.ts";
import { settleAborts } from "../../../workers/control/aborts.ts";
import { expireSandboxes } from "../../../workers/control/expire.ts";
import { withLock } from "../../../workers/control/lock.ts";
import { restamp } from "../../../workers/control/restamp.ts";
import { sweepOperations } from "../../../workers/control/sweep.ts";
import { createLogger } from "../../../workers/log.ts";
import { loadMembers } from "../../../workers/pool/probe.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { createRig, type Rig } from "../producers/rig.ts";
import { until } from "./until.ts";

let server: RedisServer;
let rig: Rig;
let context: WorkerContext;
beforeAll(async () => {
  server = await startRedis();
  rig = createRig(server);
  const { redis, keys, store, queues } = rig;
  // The clockwork of records touches nothing else.
  context = { redis, keys, store, queues, log: createLogger("silent") } as unknown as WorkerContext;
});
afterAll(async () => {
  await rig[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const NEVER = new AbortController().signal;
const NODE = "pve1";

/** The open destroys of a sandbox, oldest first. */
async function destroysOf(sandbox: SandboxId): Promise<OperationId[]> {
  const ids = await rig.redis.lrange(`${rig.keys.prefix}:changes:${sandbox}`, 0, -1);
  return ids as OperationId[]; // nothing else is asked of these sandboxes
}

async function damage(key: string, field: string): Promise<void> {
  await rig.redis.hset(key, field, "{");
}

test("a sandbox whose time is up is destroyed; when that fails, again five minutes later, until it is gone", async () => {
  const sandbox = await rig.running();
  const due = () => rig.redis.zscore(rig.keys.expiries, sandbox);
  await rig.redis.zadd(rig.keys.expiries, 1_000, sandbox);
  await expireSandboxes(context, () => 999);
  expect(await destroysOf(sandbox)).toEqual([]);

  await expireSandboxes(context, () => 5_000);
  const [first = "" as OperationId, ...more] = await destroysOf(sandbox);
  expect(more).toEqual([]);
  expect(await rig.queues.get(nodeQueue(NODE)).getJob(first)).toBeDefined();
  expect(await due()).toBe("305000");
  await expireSandboxes(context, () => 305_000);
  expect(await destroysOf(sandbox)).toEqual([first]);
  expect(await due()).toBe("605000");

  await rig.fail(first, new FleetError("node_unreachable", "the node is down"));
  await expireSandboxes(context, () => 605_000);
  const [second = "" as OperationId] = await destroysOf(sandbox);
  expect(second).not.toBe(first);
  const writer = await rig.claim(second);
  await rig.store.end(writer, { status: "succeeded", result: {} }, { sandbox: { state: "destroyed" } });
  expect(await due()).toBeNull();
});

test("a TTL of a sandbox without record is forgotten, one with a bad record stops no other", async () => {
  const [bad, good, unknown] = [await rig.running(), await rig.running(), newSandboxId()];
  await damage(rig.keys.sandbox(bad), "createdAt");
  await rig.redis.zadd(rig.keys.expiries, 1, bad, 2, "nonsense", 3, unknown, 4, good);
  await expireSandboxes(context, () => 1_000);
  expect(await destroysOf(good)).toHaveLength(1);
  expect(await rig.redis.zscore(rig.keys.expiries, unknown)).toBeNull();
  expect(await rig.redis.zscore(rig.keys.expiries, bad)).toBe("301000");
  await rig.redis.del(rig.keys.expiries);
});

test("a record that can't be read keeps no stamps from being written, and no pool from being tended", async () => {
  const [bad, good, unknown] = [await rig.running(), await rig.running(), newSandboxId()];
  await damage(rig.keys.sandbox(bad), "createdAt");
  await rig.redis.sadd(rig.keys.restamp, bad, unknown);
  await restamp(context, NEVER);
  expect(await rig.redis.smembers(rig.keys.restamp)).toEqual([bad]);
  const pools = { members: async () => [bad, good, unknown] } as unknown as WorkerContext["pools"]; // nothing else is asked
  expect(await loadMembers({ ...context, pools })).toMatchObject([{ id: good }]);
  await rig.redis.del(rig.keys.restamp);
});

/** A provision whose job waits for its next try. */
async function delayed(id: OperationId): Promise<void> {
  const queue = rig.queues.get(PLACE);
  const job = await queue.getJob(id);
  const data = job?.data;
  if (!data) throw new Error("no job");
  await job.remove();
  await queue.add("provision", data, { jobId: id, delay: 600_000 });
}

test("an aborted operation is woken once, so that an undo that fails keeps its own curve", async () => {
  const { id } = await rig.fleet.provision({ template: "base" });
  await rig.redis.hset(rig.keys.operation(id), "step", JSON.stringify({ name: "clone", at: 1 }));
  const stateOf = async () => (await rig.queues.get(PLACE).getJob(id))?.getState();
  await delayed(id);
  await rig.store.abort(id, { code: "canceled", message: "canceled", facts: {} }, undefined);
  await settleAborts(context);
  expect(await stateOf()).toMatch(/waiting|prioritized/);
  await delayed(id);
  await settleAborts(context);
  expect(await stateOf()).toBe("delayed");
});

test("an aborted provision that has leased numbers and begun nothing gives them back; a bad record before it is passed over", async () => {
  const broken = await rig.client({ team: "broken" }).provision({ template: "base" });
  const { id, sandboxId } = await rig.fleet.provision({ template: "base" });
  const writer = await rig.claim(id);
  await rig.store.leaseVmid(writer, { first: 20_000, last: 20_009 });
  await rig.store.leaseAddress(writer, { first: "10.0.0.1", last: "10.0.0.9", bits: 24 });
  expect(await rig.redis.hvals(rig.keys.vmids)).toContain(sandboxId);
  const abort = { code: "canceled" as const, message: "canceled", facts: {} };
  for (const one of [broken.id, id]) await rig.store.abort(one, abort, undefined);
  await damage(rig.keys.operation(broken.id), "attempts");
  await rig.redis.sadd(rig.keys.aborting, "nonsense");
  await settleAborts(context);
  expect(await rig.store.load(id)).toMatchObject({ status: "canceled" });
  expect(await rig.store.loadSandbox(sandboxId)).toMatchObject({ state: "failed" });
  expect(await rig.redis.hvals(rig.keys.vmids)).not.toContain(sandboxId);
  expect(await rig.redis.hvals(rig.keys.ips)).not.toContain(sandboxId);
  await rig.redis.del(rig.keys.aborting);
});

test("an aborted operation without a job ends, or gets one to undo what it has begun", async () => {
  const [idle, begun] = [
    await rig.fleet.provision({ template: "base" }),
    await rig.fleet.provision({ template: "base" }),
  ];
  await rig.redis.hset(rig.keys.operation(begun.id), "step", JSON.stringify({ name: "clone", at: 1 }));
  for (const { id } of [idle, begun]) await (await rig.queues.get(PLACE).getJob(id))?.remove();
  for (const handle of [idle, begun]) expect(await handle.cancel()).toBe(true);
  await settleAborts(context);
  expect(await rig.store.load(idle.id)).toMatchObject({ status: "canceled" });
  expect(await rig.store.load(begun.id)).toMatchObject({ status: "queued" });
  expect(await rig.queues.get(PLACE).getJob(begun.id)).toBeDefined();
});

test("who was told that it will be canceled gets no success; a destroy has gone too far", async () => {
  const { id } = await rig.fleet.provision({ template: "base" });
  const writer = await rig.claim(id);
  const canceled = { code: "canceled" as const, message: "canceled", facts: {} };
  await rig.store.abort(id, canceled, undefined);
  await expect(rig.store.end(writer, { status: "succeeded", result: {} })).rejects.toMatchObject({ code: "canceled" });
  await rig.store.end(writer, { status: "canceled", error: new FleetError("canceled", "canceled") });
  const destroy = await rig.fleet.destroy({ sandboxId: await rig.running() });
  const last = await rig.claim(destroy.id);
  await rig.store.abort(destroy.id, canceled, undefined);
  await rig.store.end(last, { status: "succeeded", result: { destroyed: true, existed: true } });
  expect(await rig.store.load(destroy.id)).toMatchObject({ status: "succeeded" });
});

test("an operation that lost its job gets it again, whatever stands before it in the list", async () => {
  const [broken, lost] = [
    await rig.client({ team: "red" }).provision({ template: "base" }),
    await rig.client({ team: "blue" }).provision({ template: "base" }),
  ];
  const queue = rig.queues.get(PLACE);
  for (const { id } of [broken, lost]) await (await queue.getJob(id))?.remove();
  await damage(rig.keys.operation(broken.id), "attempts");
  await rig.redis.zadd(rig.keys.open, 1, "nonsense", 2, broken.id, 3, lost.id);
  expect(await sweepOperations(context, NEVER)).toBe(1);
  expect(await queue.getJob(lost.id)).toBeDefined();
  expect(await rig.redis.zscore(rig.keys.open, "nonsense")).toBeNull();
});

test("what waits for a sandbox goes on when the provision's worker died right after its end", async () => {
  const provision = await rig.fleet.provision({ template: "base" });
  const { sandboxId } = provision;
  const waiting = [
    await rig.fleet.exec({ sandboxId, command: "true" }),
    await rig.fleet.expose({ sandboxId, name: "web", port: 80 }),
    await rig.fleet.hide({ sandboxId, name: "web" }),
  ];
  const writer = await rig.claim(provision.id);
  const error = new FleetError("canceled", "canceled");
  // The worker would add their jobs now.
  await rig.store.end(writer, { status: "canceled", error }, { sandbox: { state: "failed" } });
  for (const { id } of waiting) await rig.redis.zadd(rig.keys.open, 1, id);
  await sweepOperations(context, NEVER);
  for (const { id } of waiting) expect(await rig.queues.get(PLACE).getJob(id)).toBeDefined();
});

test("a task of the clockwork runs once at a time over all workers, and again when it has failed", async () => {
  const key = `${rig.keys.prefix}:control-lock:test`;
  const first = Promise.withResolvers<void>();
  const running = withLock(rig.redis, key, () => first.promise);
  await until(async () => (await rig.redis.exists(key)) === 1, "the lock");
  expect(await withLock(rig.redis, key, () => Promise.reject(new Error("ran beside the first")))).toBe(false);
  first.resolve();
  expect(await running).toBe(true);
  await expect(withLock(rig.redis, key, () => Promise.reject(new Error("failed")))).rejects.toThrow("failed");
  expect(await withLock(rig.redis, key, () => Promise.resolve())).toBe(true);
});

test("who has lost the lock does not take it from the next one", async () => {
  const key = `${rig.keys.prefix}:control-lock:other`;
  await withLock(rig.redis, key, () => rig.redis.set(key, "of another worker", "PX", 60_000));
  expect(await rig.redis.get(key)).toBe("of another worker");
});

test("an extension at the moment of the end: nothing is asked for and it lives on, or it is refused", async () => {
  const ids = await Promise.all(Array.from({ length: 24 }, () => rig.running({ ttlSeconds: 3_600 })));
  const now = Date.now();
  for (const id of ids) {
    await rig.redis.hset(rig.keys.sandbox(id), "expiresAt", now - 1);
    await rig.redis.zadd(rig.keys.expiries, now - 1, id);
  }
  const extend = (id: SandboxId) =>
    rig.fleet.sandboxes.extend(id, { seconds: 1_000 }).then(
      () => "extended",
      ({ code }: FleetError) => code,
    );
  const before = await Promise.all(ids.slice(0, 4).map(extend));
  const [during] = await Promise.all([Promise.all(ids.slice(4, 20).map(extend)), expireSandboxes(context)]);
  const after = await Promise.all(ids.slice(20).map(extend));
  expect(new Set([...before, "-", ...after])).toEqual(new Set(["extended", "-", "sandbox_gone"]));
  for (const [at, outcome] of [...before, ...during, ...after].entries()) {
    const id = ids[at] ?? expect.fail();
    expect(await destroysOf(id)).toHaveLength(outcome === "extended" ? 0 : 1);
    expect(Number(await rig.redis.zscore(rig.keys.expiries, id)) > now + 900_000).toBe(outcome === "extended");
  }
  await rig.redis.del(rig.keys.expiries);
});

test("API keys that expired long ago are forgotten, others are kept", async () => {
  const store = createApiKeyStore(rig.redis, rig.keys);
  const team = TeamId.parse("red");
  await store.create({ team, name: "old", expiresAt: 999 });
  await store.create({ team, name: "just-now", expiresAt: 1_000 });
  await store.create({ team, name: "for-good" });
  await rig.redis.hset(rig.keys.apiKeys, "damaged", "{}");
  await store.forgetExpired(1_000);
  expect((await store.list(team, () => {})).map(({ name }) => name).sort()).toEqual(["for-good", "just-now"]);
});
