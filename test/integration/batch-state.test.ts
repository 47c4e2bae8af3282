/** Batches in Redis: their counts are those of their operations after every step, and a stop holds from its own step on. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { FleetError } from "../../shared/errors.ts";
import { type BatchId, newBatchId, newFence, newOperationId, newSandboxId, TeamId } from "../../shared/ids.ts";
import { type BatchStore, createBatchStore, toItemEnd } from "../../shared/state/batches.ts";
import type { BatchPolicy } from "../../shared/state/records.ts";
import { type RedisServer, startRedis } from "../redis.ts";
import { createRig, type Rig, toProvisioned } from "./producers/rig.ts";

let server: RedisServer;
let rig: Rig;
let batches: BatchStore;
beforeAll(async () => {
  server = await startRedis();
  rig = createRig(server);
  batches = createBatchStore(rig.redis, rig.keys, { retentionSec: 60 });
});
afterAll(async () => {
  await rig[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const team = TeamId.parse("red");

async function opened(policy: BatchPolicy = "keep"): Promise<BatchId> {
  const id = newBatchId();
  await batches.open({ id, team, policy, size: undefined });
  return id;
}

function provisionItem(index: number, template = "base") {
  const newSandbox = { template, state: "placing" as const, createdAt: 1 };
  const kind = "provision" as const;
  const request = { kind, team, scope: undefined, input: { template }, secrets: undefined, batch: true, newSandbox };
  return { request, items: [{ id: newOperationId(), sandbox: newSandboxId(), index }] };
}

/** Accepts items 0 to count - 1; their operations. */
async function accepted(batch: BatchId, count: number) {
  const groups = Array.from({ length: count }, (_, index) => provisionItem(index));
  const outcomes = await rig.store.acceptItems(batch, groups);
  return outcomes.flatMap((one) => (one.outcome === "accepted" ? [one.accepted.id] : []));
}

async function counts(id: BatchId) {
  const batch = await batches.load(id);
  if (!batch) throw new Error(`${id} is gone`);
  const { queued, running, succeeded, failed, canceled, codes } = batch;
  return { queued, running, succeeded, failed, canceled, codes };
}

const failure = new FleetError("storage_full", "local is full");

test("counts follow accept, claim, a way back to placement and end; the batch ends with its last item", async () => {
  const id = await opened();
  const [a, b, c] = await accepted(id, 3);
  if (!a || !b || !c) throw new Error("unreachable");
  const none = { queued: 0, running: 0, succeeded: 0, failed: 0, canceled: 0, codes: {} };
  expect(await counts(id)).toEqual({ ...none, queued: 3 });

  const place = await rig.claim(a);
  expect(await counts(id)).toEqual({ ...none, queued: 3 });
  await rig.store.write(place, { operation: { queue: "node-pve1" }, leavesLine: true });
  await rig.claim(a);
  expect(await counts(id)).toEqual({ ...none, queued: 2, running: 1 });
  const again = await rig.claim(a);
  expect(await counts(id)).toEqual({ ...none, queued: 2, running: 1 });
  await rig.store.write(again, { operation: { queue: "place", status: "queued" } });
  expect(await counts(id)).toEqual({ ...none, queued: 3 });

  await rig.succeed(a, {});
  await rig.fail(b, failure);
  await batches.close(id);
  expect(await batches.load(id)).not.toHaveProperty("endedAt");
  await rig.fail(c, new FleetError("canceled", "enough"));
  expect(await counts(id)).toEqual({ ...none, succeeded: 1, failed: 1, canceled: 1, codes: { storage_full: 1 } });
  const ends = (await batches.ends(id, 0, 10)).map(toItemEnd);
  expect(ends).toMatchObject([
    { index: 0, operation: a, code: undefined },
    { index: 1, operation: b, code: "storage_full" },
    { index: 2, operation: c, code: "canceled" },
  ]);
  expect(await batches.load(id)).toMatchObject({ open: 0, endedAt: expect.any(Number) });
  // The record, its items and its ends go with the retention of the operation that ended last; nothing else is left.
  const left = (await rig.redis.keys(`${rig.prefix}:batch*:${id}`)).sort();
  expect(left).toEqual([rig.keys.batchEnds(id), rig.keys.batchItems(id), rig.keys.batch(id)].sort());
  for (const key of left) expect(await rig.redis.ttl(key)).toBeGreaterThan(50);
});

test("an item is accepted once: the same again is known, another input or one past the end is a conflict", async () => {
  const id = await opened();
  await accepted(id, 1);
  await batches.reject(id, 1, "h", failure);
  expect(await batches.reject(id, 1, "h", failure)).toBe("known");
  await expect(batches.reject(id, 0, "h", failure)).rejects.toMatchObject({ code: "idempotency_conflict" });
  await batches.close(id);
  const again = [provisionItem(0), provisionItem(0, "other"), provisionItem(1), provisionItem(2)];
  const conflict = { outcome: "refused", error: { code: "idempotency_conflict" } };
  expect(await rig.store.acceptItems(id, again)).toMatchObject([{ outcome: "known" }, conflict, conflict, conflict]);
  expect(await counts(id)).toMatchObject({ queued: 1, failed: 1 });
  expect(await batches.loadRejection(id, 1)).toMatchObject({ code: "storage_full" });
  const gone = await rig.store.acceptItems(newBatchId(), [provisionItem(0)]);
  expect(gone).toMatchObject([{ outcome: "refused", error: { code: "batch_not_found" } }]);
});

test("events of a batch are those of its operations", async () => {
  const id = await opened();
  const [first, second] = await accepted(id, 2);
  if (!first || !second) throw new Error("unreachable");
  await accepted(await opened(), 1);
  await rig.succeed(second, toProvisioned(second, newSandboxId()));
  await rig.fail(first, failure);
  const seen: [string, string, unknown][] = [];
  for await (const { operation, type, data } of rig.fleet.events({ after: "0", follow: false, batch: id }))
    seen.push([operation, type, "item" in data && data.item]);
  expect(seen).toEqual([
    [first, "operation.accepted", 0],
    [second, "operation.accepted", 1],
    [second, "operation.succeeded", 1],
    [first, "operation.failed", 0],
  ]);
});

test("the same id again is the same batch; another team's, policy's or size's is a conflict", async () => {
  const id = await opened();
  await accepted(id, 1);
  await batches.open({ id, team, policy: "keep", size: undefined });
  expect(await counts(id)).toMatchObject({ queued: 1 });
  const others = [{ team: TeamId.parse("blue") }, { policy: "stop" as const }, { size: 3 }];
  for (const other of others) {
    const asked = batches.open({ id, team, policy: "keep", size: undefined, ...other });
    await expect(asked).rejects.toMatchObject({ code: "idempotency_conflict" });
  }
});

test("stop: from the failure's own step on nothing more is accepted or begins, and what runs goes on", async () => {
  const id = await opened("stop");
  const [a, b, c] = await accepted(id, 3);
  if (!a || !b || !c) throw new Error("unreachable");
  for (const one of [a, b]) {
    await rig.store.write(await rig.claim(one), { operation: { queue: "node-pve1" }, leavesLine: true });
    await rig.claim(one);
  }
  await rig.fail(a, failure);
  expect(await batches.load(id)).toMatchObject({ stop: "stop", open: 0, reason: { code: "canceled" } });
  expect(await rig.store.acceptItems(id, [provisionItem(3)])).toEqual([{ outcome: "stopped" }]);
  const claims = await Promise.all([b, c].map((one) => rig.store.claim(one, newFence())));
  const aborts = claims.map((claim) => claim.outcome === "claimed" && claim.operation.abort?.code);
  expect(aborts).toEqual([undefined, "canceled"]);
  expect(await batches.abortItems(id, [a, b, c])).toEqual([c]);
  expect((await rig.store.load(b))?.abort).toBeUndefined();
});

test("undo reaches what runs, and is over only when everything that was made is gone", async () => {
  const id = await opened("undo");
  const [a, b] = await accepted(id, 2);
  if (!a || !b) throw new Error("unreachable");
  const sandbox = (await rig.store.load(a))?.sandbox;
  if (!sandbox) throw new Error("unreachable");
  await rig.store.end(await rig.claim(a), { status: "succeeded", result: {} }, { sandbox: { state: "running" } });
  await rig.store.write(await rig.claim(b), { operation: { queue: "node-pve1" }, leavesLine: true });
  await rig.claim(b);
  await batches.reject(id, 2, "h", failure);
  expect(await batches.abortItems(id, [b])).toEqual([]);
  expect(await rig.redis.smembers(rig.keys.aborting)).toContain(b);
  await rig.fail(b, new FleetError("canceled", "undone"));
  expect(await batches.noteUndo(id)).toBe(3);
  expect(await rig.redis.zrange(rig.keys.batchUndo(id), "0", "-1")).toEqual([sandbox]);
  expect(await batches.load(id)).not.toHaveProperty("endedAt");
  await batches.countUndone(id, "undone", [sandbox]);
  await batches.countUndone(id, "undone", [sandbox]);
  expect(await batches.load(id)).toMatchObject({ undone: 1, endedAt: expect.any(Number) });
  expect(await rig.redis.sismember(rig.keys.batchesStopping, id)).toBe(0);
});
