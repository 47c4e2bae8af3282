/** A lock in Redis for a piece of clockwork: one run at a time over all workers, as far as clocks allow. */
import { randomUUID } from "node:crypto";
import type { RedisConnection } from "../../shared/redis/connect.ts";
import { defineScript, runScript } from "../../shared/redis/script.ts";

/** So long the work of a worker that died stands still. */
const LOCK_MS = 6_000;

const RELEASE = defineScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`);

const RENEW = defineScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
`);

/** Runs `work` unless somebody else holds the lock; returns whether it ran. */
export async function withLock(
  redis: RedisConnection,
  key: string,
  work: () => Promise<unknown>,
  lockMs = LOCK_MS,
): Promise<boolean> {
  const token = randomUUID();
  if ((await redis.set(key, token, "PX", lockMs, "NX")) !== "OK") return false;
  const beats = setInterval(() => {
    runScript(redis, RENEW, [key], [token, lockMs]).catch(() => {}); // it runs out, and another may begin
  }, lockMs / 4);
  try {
    await work();
    return true;
  } finally {
    clearInterval(beats);
    await runScript(redis, RELEASE, [key], [token]);
  }
}
