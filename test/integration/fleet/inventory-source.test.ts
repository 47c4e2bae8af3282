/** One reading of the cluster for all who ask, whoever of them leaves. */
import { randomBytes } from "node:crypto";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../../shared/redis/connect.ts";
import { type Inventory, loadInventory } from "../../../shared/state/inventory.ts";
import { createKeys, type Keys } from "../../../shared/state/keys.ts";
import type { Collector } from "../../../workers/inventory/collect.ts";
import { createInventorySource, type LiveInventory } from "../../../workers/inventory/source.ts";
import { failure, until, within } from "./harness.ts";

/** Readings that end when the test says so, or when their signal says so. */
class SlowCollector implements Collector {
  readonly readings: { before: Inventory | null; end: (inventory: Inventory) => void; signal: AbortSignal }[] = [];

  collect({ signal }: { signal: AbortSignal }, before: Inventory | null): Promise<Inventory> {
    return new Promise((resolve, reject) => {
      this.readings.push({ before, end: resolve, signal });
      signal.addEventListener("abort", () => reject(signal.reason));
    });
  }
}

let redis: RedisConnection;
let keys: Keys;
let collector: SlowCollector;
let source: LiveInventory;
beforeAll(() => {
  redis = connectRedis(inject("redisUrl"));
});
afterAll(() => closeRedis(redis));
beforeEach(() => {
  keys = createKeys(`{test-${randomBytes(6).toString("hex")}}`);
  collector = new SlowCollector();
  source = createInventorySource(redis, keys, collector);
});
afterEach(async () => {
  await source[Symbol.asyncDispose]();
  await redis.del(keys.inventory);
});

const inventoryOf = (at: number): Inventory => ({ at, version: "8.4.1", nodes: [], replicas: [] });
const begun = () => until(() => collector.readings[0], "a reading");

test("who leaves is told so at once and takes nothing from the others", async () => {
  const leaver = new AbortController();
  const [left, stayed] = [source.refresh(leaver.signal), source.refresh(within())];
  const reading = await begun();
  leaver.abort(new FleetError("canceled", "canceled"));
  await failure(left, "canceled");
  expect(reading.signal.aborted).toBe(false);
  const inventory = inventoryOf(Date.now());
  reading.end(inventory);
  expect(await stayed).toBe(inventory);
  expect(collector.readings).toHaveLength(1);
  expect(source.current()).toBe(inventory);
  expect(await loadInventory(redis, keys)).toEqual(inventory);
});

test("when all have left it goes on and serves the next one", async () => {
  await failure(source.refresh(AbortSignal.abort(new FleetError("canceled", "canceled"))), "canceled");
  const leaver = new AbortController();
  const left = source.refresh(leaver.signal);
  const reading = await begun();
  leaver.abort(new FleetError("canceled", "canceled"));
  await failure(left, "canceled");
  const next = source.refresh(within());
  reading.end(inventoryOf(Date.now()));
  await next;
  expect(collector.readings).toHaveLength(1);
});

test("closing ends a reading", async () => {
  const reading = source.refresh(within());
  await begun();
  const refused = failure(reading, "shutting_down");
  await source[Symbol.asyncDispose]();
  await refused;
});

test("a reading gets the last one, this worker's own or the stored one; one of another version is none", async () => {
  const stored = inventoryOf(1);
  await redis.set(keys.inventory, JSON.stringify(stored));
  const first = source.refresh(within());
  expect((await begun()).before).toEqual(stored);
  collector.readings[0]?.end(inventoryOf(2));
  await first;
  const second = source.refresh(within());
  await until(() => collector.readings[1], "a second reading");
  expect(collector.readings[1]?.before).toEqual(inventoryOf(2));
  collector.readings[1]?.end(inventoryOf(3));
  await second;
  for (const text of ['{"at":"of old"}', "no JSON"]) {
    await redis.set(keys.inventory, text);
    expect(await loadInventory(redis, keys)).toBeNull();
  }
});

test("takes over what another worker has read, not what is older than its own", async () => {
  const seen: number[] = [];
  source.onChange(({ at }) => seen.push(at));
  const now = Date.now();
  for (const at of [now, now - 1, now, now + 1]) {
    await redis.set(keys.inventory, JSON.stringify(inventoryOf(at)));
    await source.update(10_000, within());
  }
  expect(seen).toEqual([now, now + 1]);
  expect(collector.readings).toEqual([]);
});
