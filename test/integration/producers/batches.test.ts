import { getEventListeners } from "node:events";
/** What a producer has of a batch: one id, exact counts, each item's end once, and the same again after a crash. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { BatchJob, ItemOutcome } from "../../../producers/index.ts";
import { FleetError } from "../../../shared/errors.ts";
import type { OperationId } from "../../../shared/ids.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { caught, createRig, type Rig, toProvisioned } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

const full = new FleetError("storage_full", "local is full", { facts: { node: "pve1" } });
const provision: BatchJob = { kind: "provision", input: { template: "base" } };

/** Operations of a batch by item. */
async function operationsOf(rig: Rig, id: string): Promise<OperationId[]> {
  const items = await rig.redis.hgetall(rig.keys.batchItems(id));
  return Object.keys(items)
    .sort((a, b) => Number(a) - Number(b))
    .map((index) => items[index] as OperationId); // none was refused where this is asked
}

async function succeed(rig: Rig, id: OperationId) {
  await rig.succeed(id, toProvisioned(id, (await rig.store.load(id))?.sandbox ?? ""));
}

async function all(outcomes: AsyncIterable<ItemOutcome>): Promise<ItemOutcome[]> {
  const found: ItemOutcome[] = [];
  for await (const one of outcomes) found.push(one);
  return found;
}

describe("a provision many times", () => {
  test("is accepted as batch work under one id, of which one has a job: the first in its team's line", async () => {
    await using rig = createRig(server);
    let opened: string | undefined;
    const onOpen = (one: { id: string }) => {
      opened = one.id;
    };
    const batch = await rig.fleet.batch({ count: 230, template: "base" }, { onOpen });
    expect(opened).toBe(batch.id);
    const counts = { total: 230, queued: 230, running: 0, succeeded: 0, failed: 0, canceled: 0, failedByCode: {} };
    expect(await batch.status()).toMatchObject({ status: "running", policy: "keep", size: 230, counts });
    const ids = await operationsOf(rig, batch.id);
    expect(new Set(ids).size).toBe(230);
    expect(await rig.redis.zrange(`${rig.prefix}:place:prioritized`, "0", "-1")).toEqual([ids[0]]);
    const last = await rig.store.load(ids.at(-1) ?? ("" as OperationId));
    expect(last).toMatchObject({ batch: batch.id, item: 229, input: { priority: "batch" }, parked: 1 });
  });

  test("waits for the team's quotas, unless that says otherwise", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("default", { provisions: 2 });
    const waits = await rig.fleet.batch({ count: 3, template: "base" });
    expect(await waits.counts()).toMatchObject({ queued: 3 });
    const refused = await rig.fleet.batch({ count: 3, template: "base" }, { onQuota: "refuse" });
    expect(await refused.counts()).toMatchObject({ failed: 3, failedByCode: { quota_exceeded: 3 } });
  });

  test.each([
    ["count", { count: 0, template: "base" }, {}],
    ["template", { count: 2, template: "" }, {}],
    ["network.ip", { count: 2, template: "base", network: { ip: "10.0.0.5/24" } }, {}],
    ["id", { count: 2, template: "base" }, { id: "no spaces" }],
    ["policy", { count: 2, template: "base" }, { policy: "retry" as "keep" }],
    ["idempotencyKey", { count: 2, template: "base" }, { id: "a", idempotencyKey: "b" }],
  ])("a bad %s is refused before anything is stored", async (field, source, options) => {
    await using rig = createRig(server);
    const error = await caught(rig.fleet.batch(source, options));
    expect(error).toMatchObject({ code: "invalid_input", facts: { fields: [field] } });
    expect(await rig.redis.keys(`${rig.prefix}:*`)).toEqual([rig.keys.pulse]);
  });
});

describe("jobs of any kind", () => {
  test("but not what somebody types into, nor what an undo must not destroy", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const jobs: BatchJob[] = [
      { kind: "shell", input: { sandboxId } },
      { kind: "adopt", input: { node: "pve1", vmid: 101 } },
    ];
    const batch = await rig.fleet.batch(jobs);
    expect(await batch.counts()).toMatchObject({ queued: 0, failedByCode: { unsupported: 2 } });
  });

  test("a bad one fails its item alone; results tell each as it ends, and again later and elsewhere", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const jobs: unknown[] = [
      { kind: "exec", input: { sandboxId, command: "ls" } },
      { kind: "exec", input: { sandboxId } },
      { kind: "exec", input: { sandboxId: "sbx_0000000000000000", command: "ls" } },
      { kind: "dance", input: {} },
      { error: new FleetError("invalid_input", "must be JSON"), index: 7 },
      { kind: "upload", input: { sandboxId, path: "/a" } },
      { kind: "exec", input: { sandboxId, command: "id", env: { A: "b" } } },
      null,
      { kind: "exec", input: { sandboxId, command: "ls" }, index: "last" },
    ];
    const batch = await rig.fleet.batch(jobs as BatchJob[]);
    expect(await batch.counts()).toMatchObject({
      total: 9,
      queued: 2,
      failed: 7,
      failedByCode: { invalid_input: 5, sandbox_not_found: 1, unsupported: 1 },
    });
    const results = batch.results();
    const refused: IteratorResult<ItemOutcome>[] = [];
    for (let count = 0; count < 7; count++) refused.push(await results.next());
    expect(refused.map(({ value }) => [value.index, value.operationId, value.error.code])).toEqual([
      [2, undefined, "sandbox_not_found"],
      [1, undefined, "invalid_input"],
      [3, undefined, "invalid_input"],
      [7, undefined, "invalid_input"],
      [8, undefined, "unsupported"],
      [10, undefined, "invalid_input"],
      [11, undefined, "invalid_input"],
    ]);
    const texts = [1, 5, 6].map((at) => refused[at]?.value.error.text);
    expect(texts).toEqual([
      expect.stringMatching(/^command: is missing/),
      "job: must be an object",
      "index: must be a number",
    ]);

    const items = await rig.redis.hgetall(rig.keys.batchItems(batch.id));
    const next = results.next();
    await rig.fail(items["9"] as OperationId, full);
    expect((await next).value).toMatchObject({
      index: 9,
      ok: false,
      error: { code: "storage_full", facts: full.facts },
    });
    const output = {
      exitCode: 0,
      stdout: "a",
      stderr: "",
      truncated: false,
      stdoutBytes: 1,
      stderrBytes: 0,
      durationMs: 1,
    };
    const rest = all(results);
    await rig.succeed(items["0"] as OperationId, output);
    expect(await rest).toMatchObject([{ index: 0, ok: true, kind: "exec", sandboxId, result: { stdout: "a" } }]);

    expect(await batch.result()).toMatchObject({ status: "ended", size: 9, counts: { succeeded: 1, failed: 8 } });
    const late = await rig.client().batches.get(batch.id);
    expect((await all(late.results())).map(({ index }) => index)).toEqual([2, 1, 3, 7, 8, 10, 11, 9, 0]);
  });

  test("a slow source holds nothing back, and nothing is held of a fast one", async () => {
    await using rig = createRig(server);
    let taken = 0;
    let goOn = () => {};
    const more = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    async function* source(): AsyncGenerator<BatchJob> {
      yield provision;
      await more;
      for (; taken < 1_000; taken++) {
        // As far as it may be ahead of what is stored: a chunk that is accepted and one that is read.
        if (taken % 100 === 0) expect(taken - (await batch.counts()).total).toBeLessThan(250);
        yield provision;
      }
    }
    let batch = await rig.fleet.batch([], { id: "slow-1" });
    const submitted = rig.fleet.batch(source(), { id: "slow-2", onOpen: (one) => (batch = one) });
    while (batch.id !== "slow-2" || (await batch.counts()).total < 1)
      await new Promise((resolve) => setImmediate(resolve));
    expect(await batch.status()).toMatchObject({ status: "open", counts: { total: 1 } });
    goOn();
    await submitted;
    expect(await batch.status()).toMatchObject({ status: "running", size: 1_001, counts: { queued: 1_001 } });
  });
});

describe("the same id again", () => {
  test("goes on where a dead producer stopped, and does nothing twice", async () => {
    await using rig = createRig(server);
    async function* dies(): AsyncGenerator<BatchJob> {
      for (let at = 0; at < 130; at++) yield provision;
      throw new Error("the producer died");
    }
    const before = rig.client();
    expect(await caught(before.batch(dies(), { id: "nightly", policy: "stop" }))).toMatchObject({
      message: "the producer died",
    });
    const [open] = await rig.fleet.batches.list();
    expect(open).toMatchObject({ id: "nightly", status: "open", counts: { total: 130 }, size: undefined });
    const first = await operationsOf(rig, "nightly");

    const jobs = Array.from({ length: 150 }, () => provision);
    const batch = await rig.fleet.batch(jobs, { id: "nightly", policy: "stop" });
    expect(await batch.status()).toMatchObject({ status: "running", counts: { total: 150 } });
    expect((await operationsOf(rig, "nightly")).slice(0, 130)).toEqual(first);
    expect(await rig.redis.zcard(rig.keys.open)).toBe(150);

    const other: BatchJob = { kind: "provision", input: { template: "other" } };
    const conflict = await caught(rig.fleet.batch([provision, other], { id: "nightly", policy: "stop" }));
    expect(conflict).toMatchObject({ code: "idempotency_conflict", facts: { batch: "nightly", item: 1 } });
    const longer = await caught(rig.fleet.batch([...jobs, provision], { id: "nightly", policy: "stop" }));
    expect(longer).toMatchObject({ code: "idempotency_conflict", facts: { item: 150 } });
    expect(await caught(rig.fleet.batch(jobs, { id: "nightly" }))).toMatchObject({ code: "idempotency_conflict" });
    expect(await rig.redis.zcard(rig.keys.open)).toBe(150);
  });

  test("an idempotency key is an id of its team; another team has no part in it", async () => {
    await using rig = createRig(server);
    const [red, blue] = [rig.client({ team: "red" }), rig.client({ team: "blue" })];
    const [a, again, b] = [
      await red.batch({ count: 2, template: "base" }, { idempotencyKey: "k 1" }),
      await red.batch({ count: 2, template: "base" }, { idempotencyKey: "k 1" }),
      await blue.batch({ count: 2, template: "base" }, { idempotencyKey: "k 1" }),
    ];
    expect(again.id).toBe(a.id);
    expect(b.id).not.toBe(a.id);
    expect(await rig.redis.zcard(rig.keys.open)).toBe(4);
    expect(await blue.batches.list()).toMatchObject([{ id: b.id }]);
    expect(await caught(blue.batches.get(a.id))).toMatchObject({ code: "batch_not_found" });
    expect(await caught(blue.batch([], { id: a.id }))).toMatchObject({ code: "idempotency_conflict" });
    expect(await caught(rig.fleet.batches.get("no such"))).toMatchObject({ code: "batch_not_found" });
  });
});

test("a stop by policy ends the submission; a cancel is told to all who wait", async () => {
  await using rig = createRig(server);
  async function* source(): AsyncGenerator<BatchJob> {
    for (let at = 0; at < 100; at++) yield provision;
    const [first] = await operationsOf(rig, "fragile");
    if (first) await rig.fail(first, full);
    while (true) yield provision;
  }
  const batch = await rig.fleet.batch(source(), { id: "fragile", policy: "stop" });
  const stopped = await batch.status();
  expect(stopped).toMatchObject({
    status: "stopping",
    reason: { code: "canceled", message: expect.stringContaining("storage_full") },
  });
  expect(stopped.counts.total).toBeLessThan(300);

  const other = await rig.fleet.batch({ count: 1, template: "base" });
  const waiting = (await rig.client().batches.get(other.id)).result();
  expect(await other.cancel()).toBe(true);
  const [only] = await operationsOf(rig, other.id);
  if (only) await rig.fail(only, new FleetError("canceled", "its batch was canceled by its producer"));
  expect(await waiting).toMatchObject({ status: "ended", counts: { canceled: 1, total: 1 } });
  expect(await other.cancel()).toBe(false);
});

test("results survive an earlier state of Redis: none is missed, none told twice", async () => {
  await using rig = createRig(server);
  const batch = await rig.fleet.batch({ count: 3, template: "base" });
  const [a, b, c] = await operationsOf(rig, batch.id);
  if (!a || !b || !c) throw new Error("unreachable");
  const results = batch.results();
  await succeed(rig, a);
  expect((await results.next()).value).toMatchObject({ index: 0, ok: true, result: { operationId: a } });
  await succeed(rig, b);
  expect((await results.next()).value).toMatchObject({ index: 1 });
  // Redis lost the end of b; c ends first this time.
  await rig.redis.rpop(rig.keys.batchEnds(batch.id));
  await succeed(rig, c);
  await rig.redis.rpush(rig.keys.batchEnds(batch.id), `1 ${b} succeeded sbx_0000000000000000`);
  expect(await all(results)).toMatchObject([{ index: 2 }]);
});

test("a wait ends with its time limit, its signal or its client, and lets go of the signal", async () => {
  await using rig = createRig(server);
  const exec = await rig.fleet.exec({ sandboxId: await rig.running(), command: "ls" });
  const batch = await rig.fleet.batch({ count: 1, template: "base" });
  expect(await caught(batch.result({ timeoutMs: 30 }))).toMatchObject({ code: "timeout", facts: { goesOn: true } });
  expect(await caught(batch.result({ timeoutMs: -1 }))).toMatchObject({ code: "invalid_input" });
  const stop = new AbortController();
  const long = [Number.POSITIVE_INFINITY, 2 ** 40].map((timeoutMs) =>
    caught(batch.result({ timeoutMs, signal: stop.signal })),
  );
  const [waiting, listing] = [
    caught(batch.result({ signal: stop.signal })),
    all(batch.results({ signal: stop.signal })),
  ];
  stop.abort(new Error("enough"));
  for (const one of [waiting, ...long]) expect(await one).toMatchObject({ message: "enough" });
  expect(await listing).toEqual([]);
  // A process may have one signal for everything.
  const shared = new AbortController();
  const { signal } = shared;
  for (const iterator of [batch.results({ signal }), rig.fleet.events({ signal }), exec.output({ signal })]) {
    const step = iterator.next();
    await iterator.return?.();
    await step;
  }
  await caught(batch.result({ signal, timeoutMs: 1 }));
  expect(getEventListeners(signal, "abort")).toEqual([]);
  const open = batch.results();
  const pending = open.next();
  await open.return?.();
  expect(await pending).toEqual({ done: true, value: undefined });
  const left = caught(batch.result());
  await rig.fleet.close();
  expect(await left).toMatchObject({ code: "shutting_down" });
});
