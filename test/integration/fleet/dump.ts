/** What is in Redis, for a look for what must not be there. */
import type { RedisConnection } from "../../../shared/redis/connect.ts";

/** Every key with everything in it. */
export async function dump(redis: RedisConnection): Promise<string> {
  const parts: string[] = [];
  for (const key of await redis.keys("*")) {
    parts.push(key, JSON.stringify(await readers[await redis.type(key)]?.(redis, key)));
  }
  return parts.join("\n");
}

const readers: Record<string, (redis: RedisConnection, key: string) => Promise<unknown>> = {
  string: (redis, key) => redis.get(key),
  hash: (redis, key) => redis.hgetall(key),
  list: (redis, key) => redis.lrange(key, 0, -1),
  set: (redis, key) => redis.smembers(key),
  zset: (redis, key) => redis.zrange(key, "0", "-1"),
  stream: (redis, key) => redis.xrange(key, "-", "+"),
};
