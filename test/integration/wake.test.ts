import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { closeRedis, connectRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { startWake, type Wake } from "../../workers/wake.ts";

const keys = createKeys(`{test-${randomBytes(6).toString("hex")}}`);
let redis: RedisConnection;
let wake: Wake;
beforeAll(async () => {
  redis = connectRedis(inject("redisUrl"));
  wake = await startWake(connectRedis(inject("redisUrl")), keys);
});
afterAll(async () => {
  await wake[Symbol.asyncDispose]();
  await closeRedis(redis);
});

/** Sends a message and resolves once this process has it. */
async function send(message: string): Promise<void> {
  const heard = Promise.withResolvers<void>();
  const off = wake.on(() => heard.resolve());
  await redis.publish(keys.wake, message);
  await heard.promise;
  off();
}

const LONG_MS = 30_000;
const signal = AbortSignal.timeout(LONG_MS);

test("a message that comes between the look and the wait is not missed", async () => {
  using watch = wake.watch(["free"]);
  await send("free node-pve1");
  await watch.next({ timeoutMs: LONG_MS, signal });
  // It counts once, and others do not count.
  await send("ended op_x");
  const begun = performance.now();
  await watch.next({ timeoutMs: 50, signal });
  expect(performance.now() - begun).toBeGreaterThan(45);
});

test("a wait ends with its signal, and throws its reason", async () => {
  using watch = wake.watch(["free"]);
  const stop = new AbortController();
  const waiting = watch.next({ timeoutMs: LONG_MS, signal: stop.signal });
  stop.abort(new Error("enough"));
  await expect(waiting).rejects.toThrow("enough");
});
