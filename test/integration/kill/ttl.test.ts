/** Ends and warnings come over restarts: workers are killed and Redis starts anew just as they are due. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { newSandboxId, type SandboxId } from "../../../shared/ids.ts";
import type { TtlAction } from "../../../shared/jobs/fields.ts";
import { readEvents } from "../../../shared/state/events.ts";
import { parseStamp } from "../../../workers/sandbox/stamp.ts";
import { markRedis } from "../../redis-rewind.ts";
import { type Bed, containerOf, provisionOne, run, startBed, until } from "../fleet/harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    workers: "none",
    redis: { engine: "process" },
    pve: { nodes: 1 },
    env: { FLEET_STRAY_GRACE_SECONDS: "1" },
  });
  bed.redis.on("error", () => {}); // it is away for a moment
});
afterAll(() => bed.close());

async function setEnds(ids: readonly SandboxId[], at: number) {
  const step = bed.redis.multi();
  for (const id of ids) step.hset(bed.keys.sandbox(id), "expiresAt", at).zadd(bed.keys.expiries, at, id);
  await step.exec();
}

/** What was told since a cursor, of each sandbox. */
async function told(after: string, type: "operation.accepted" | "sandbox.expiring") {
  const found = new Map<string, number[]>();
  for (let cursor = after; ; ) {
    const { events, cursor: next } = await readEvents(bed.redis, bed.keys, cursor, 1);
    for (const event of events)
      if (event.type === type) found.set(event.sandbox, [...(found.get(event.sandbox) ?? []), event.at]);
    if (events.length === 0) return found;
    cursor = next;
  }
}

const newest = async () => (await bed.redis.xrevrange(bed.keys.events, "+", "-", "COUNT", 1))[0]?.[0] ?? "0";

test("what is due while workers and Redis are down is asked for once, right after; what is extended first lives on", async () => {
  const worker = await bed.startProcess();
  const make = async (ttlAction: TtlAction) =>
    (await provisionOne(bed.fleet, { ttlSeconds: 3_600, ttlAction })).sandboxId;
  const ids = await Promise.all((["destroy", "stop", "pause", "destroy"] as const).map(make));
  const [destroyed, stopped, paused, extended] = ids;
  if (!destroyed || !stopped || !paused || !extended) throw new Error("unreachable");
  const due = Date.now() + 400;
  await setEnds(ids, due);
  const before = await newest();
  await Promise.all([worker.end("SIGKILL"), bed.redisServer.kill("SIGKILL")]);
  await until(() => Date.now() > due, "the end");
  await bed.redisServer.restart();
  await bed.fleet.sandboxes.extend(extended, { seconds: 500 });
  await bed.startProcess();
  const startedAt = Date.now();
  const stateOf = async (id: string) => (await bed.fleet.sandboxes.get(id)).state;
  const states = async () => Promise.all(ids.map(stateOf));
  const wanted = ["destroyed", "stopped", "stopped", "running"].join();
  await until(async () => (await states()).join() === wanted, "what they asked for");
  const asked = await told(before, "operation.accepted");
  expect(new Set(asked.keys())).toEqual(new Set([destroyed, stopped, paused]));
  for (const times of asked.values()) expect(times).toHaveLength(1);
  for (const [at = 0] of asked.values()) expect(at - startedAt).toBeLessThan(1_000);
  expect((await bed.fleet.sandboxes.get(stopped)).expiresAt).toBeUndefined();
});

test("workers killed and Redis restarted in the middle of many ends and warnings: each comes once", async () => {
  const make = async (count: number, fields: Record<string, string | number>) => {
    const ids = Array.from({ length: count }, newSandboxId);
    const step = bed.redis.multi();
    for (const id of ids) {
      const record = { id, operation: "op_0000000000000000", team: "red", template: "base", state: "stopped" };
      step.hset(bed.keys.sandbox(id), { ...record, node: "pve1", createdAt: 1, ...fields });
      step.zadd(bed.keys.sandboxes, 1, id);
    }
    await step.exec();
    return ids;
  };
  const [ending, warned] = [await make(120, {}), await make(120, { expiresAt: Date.now() + 3_600_000 })];
  const before = await newest();
  const first = await bed.startProcess();
  const due = Date.now() + 300;
  await setEnds(ending, due);
  await bed.redis.zadd(bed.keys.expiring, ...warned.flatMap((id) => [due, id]));
  await until(async () => (await bed.redis.zcard(bed.keys.expiring)) < warned.length, "the first of them");
  await Promise.all([first.end("SIGKILL"), bed.redisServer.kill("SIGKILL")]);
  await bed.redisServer.restart();
  await bed.startProcess();
  const isOver = async () =>
    (await bed.redis.zcard(bed.keys.expiring)) + (await bed.redis.zcard(bed.keys.expiries)) === 2; // of the one extended
  await until(isOver, "the end of all", 50_000);
  const [asked, warnings] = [await told(before, "operation.accepted"), await told(before, "sandbox.expiring")];
  const counts = (found: Map<string, number[]>, ids: readonly string[]) =>
    new Set(ids.map((id) => found.get(id)?.length ?? 0));
  expect([counts(asked, ending), counts(warnings, warned)]).toEqual([new Set([1]), new Set([1])]);
  await bed.redis.unlink(...warned.map((id) => bed.keys.sandbox(id)));
  await bed.redis.zrem(bed.keys.sandboxes, ...warned);
});

test("an end and a stamp that fall into a second that Redis lost: both come again, and nothing is doubled", async () => {
  const worker = await bed.startProcess();
  const [ending, other] = await Promise.all([
    provisionOne(bed.fleet, { ttlSeconds: 3_600 }),
    provisionOne(bed.fleet, { metadata: { a: "1" } }),
  ]);
  const noted = () => parseStamp(containerOf(bed, other.vmid)?.config["description"], other.vmid)?.facts?.metadata;
  await until(() => noted()?.["a"] === "1", "its stamp", 20_000);
  const due = Date.now() + 3_000;
  await setEnds([ending.sandboxId], due);
  const goBack = await markRedis(bed.redisServer);
  await run(bed.fleet, "update", { sandboxId: other.sandboxId, metadata: { a: "2" } });
  const isGone = () => containerOf(bed, ending.vmid) === undefined;
  await until(() => isGone() && noted()?.["a"] === "2", "the end, and the stamp", 30_000);
  const lost = await newest();
  await bed.redisServer.kill("SIGKILL");
  await goBack();
  await bed.redisServer.restart();
  // Its state may be another at once: the worker asks for its end again.
  expect(await bed.redis.xrange(bed.keys.events, lost, lost)).toEqual([]);
  const stateOf = async () => (await bed.fleet.sandboxes.get(ending.sandboxId)).state;
  await until(async () => ["destroyed", "lost"].includes(await stateOf()), "the end of its record", 40_000);
  expect(bed.pve.tasks().filter(({ type, id }) => type === "vzdestroy" && id === String(ending.vmid))).toHaveLength(1);
  expect((await bed.fleet.sandboxes.get(other.sandboxId)).metadata).toEqual({ a: "1" });
  await run(bed.fleet, "update", { sandboxId: other.sandboxId, metadata: { b: "3" } });
  await until(() => JSON.stringify(noted()) === JSON.stringify({ a: "1", b: "3" }), "the stamp of the record", 20_000);
  await run(bed.fleet, "destroy", { sandboxId: other.sandboxId });
  await worker.end("SIGTERM");
});
