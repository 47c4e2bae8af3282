/** Ends that come in time: on records alone, with thousands of them at once. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { newSandboxId, OperationId, type SandboxId } from "../../shared/ids.ts";
import type { WorkerContext } from "../../workers/context.ts";
import { startExpiry } from "../../workers/control/expire.ts";
import { createLogger } from "../../workers/log.ts";
import { type RedisServer, startRedis } from "../redis.ts";
import { until } from "./fleet/until.ts";
import { createRig, type Rig } from "./producers/rig.ts";

let server: RedisServer;
let rig: Rig;
beforeAll(async () => {
  server = await startRedis();
  rig = createRig(server);
});
afterAll(async () => {
  await rig[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

/** A process that looks, on connections of its own or the rig's. */
const looking = ({ redis, keys, store, queues }: Rig) =>
  startExpiry({ redis, keys, store, queues, log: createLogger("silent") } as unknown as WorkerContext); // it touches nothing else

async function makeEnding(count: number, at: number): Promise<SandboxId[]> {
  const ids = Array.from({ length: count }, newSandboxId);
  const pipeline = rig.redis.pipeline();
  for (const id of ids) {
    const fields = {
      id,
      operation: "op_0000000000000000",
      team: "red",
      template: "base",
      state: "running",
      node: "pve1",
    };
    pipeline.hset(rig.keys.sandbox(id), { ...fields, createdAt: 1, expiresAt: at });
    pipeline.zadd(rig.keys.expiries, at, id);
  }
  await pipeline.exec();
  return ids;
}

async function askedAt(id: SandboxId): Promise<number[]> {
  const operations = await rig.redis.lrange(rig.keys.changes(id), 0, -1);
  const records = await Promise.all(operations.map((one) => rig.store.load(OperationId.parse(one))));
  return records.map((one) => one?.acceptedAt ?? 0);
}

test("2,000 that end in one second are asked for within one second, each once, by all processes together", async () => {
  const at = Date.now() + 1_500;
  const ids = await makeEnding(2_000, at);
  using _one = looking(rig);
  using _other = looking(rig);
  await until(async () => (await rig.redis.zcard(rig.keys.open)) === ids.length, "all of them");
  const asked = await Promise.all(ids.map(askedAt));
  expect(asked.filter((times) => times.length !== 1)).toEqual([]);
  const late = asked.flat().map((time) => time - at);
  expect(Math.min(...late)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...late)).toBeLessThan(1_000);
  expect(await rig.queues.get("node-pve1").getWaitingCount()).toBe(ids.length);
});
