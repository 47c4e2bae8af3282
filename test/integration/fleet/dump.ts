/** What is in Redis, for a look for what must not be there. */
import type { RedisConnection } from "../../../shared/redis/connect.ts";

/** Every key with everything in it. */
export async function dump(redis: RedisConnection): Promise<string> {
  const parts: string[] = [];
  for (const key of await redis.keys("*")) {
    parts.push(key, await contentOf(redis, key));
  }
  return parts.join("\n");
}

/** What a key holds. Of hashes and sets in order: Redis gives them as they lie, and moves them by itself while their table grows. */
export async function contentOf(redis: RedisConnection, key: string): Promise<string> {
  return JSON.stringify(await readers[await redis.type(key)]?.(redis, key));
}

const readers: Record<string, (redis: RedisConnection, key: string) => Promise<unknown>> = {
  string: (redis, key) => redis.get(key),
  hash: async (redis, key) => Object.entries(await redis.hgetall(key)).sort(([a], [b]) => (a < b ? -1 : 1)),
  list: (redis, key) => redis.lrange(key, 0, -1),
  set: async (redis, key) => (await redis.smembers(key)).sort(),
  zset: (redis, key) => redis.zrange(key, "0", "-1"),
  stream: (redis, key) => redis.xrange(key, "-", "+"),
};
