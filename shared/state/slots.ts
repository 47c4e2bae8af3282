/**
 * Slots: units of a limit over all workers (a node, a template replica, a storage).
 * The holder is an operation, not a run: a slot outlives the worker that took it, and the run that takes over has it already.
 * A slot never ends by time alone: its PVE task may still run. `expired` lists the candidates; the sweeper proves and releases.
 */
import { z } from "zod";
import type { OperationId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { defineScript, runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";

/** Names of slots. */
export const slotOf = {
  node: (node: string) => `node-${node}`,
  replica: (node: string, vmid: number) => `replica-${node}-${vmid}`,
  storage: (storage: string) => `storage-${storage}`,
};

/** A waiter that has not asked again for this long has gone. */
const WAITER_GONE_MS = 4_000;
/** A holder that has not renewed for this long may be dead. */
const EXPIRED_MS = 30_000;

/**
 * First come, first served: granted only to those who wait longest.
 * KEYS: holders, waiters, last seen, what the holder holds. ARGV: holder, limit, now, gone after, name.
 */
const TAKE = defineScript(`
local holder, limit, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('HEXISTS', KEYS[1], holder) == 1 then
  redis.call('HSET', KEYS[1], holder, now)
  return 1
end
local function grant()
  redis.call('HSET', KEYS[1], holder, now)
  redis.call('SADD', KEYS[4], ARGV[5])
  return 1
end
local free = limit - redis.call('HLEN', KEYS[1])
if free > 0 and redis.call('ZCARD', KEYS[2]) == 0 then return grant() end
redis.call('ZADD', KEYS[2], 'NX', now, holder)
redis.call('HSET', KEYS[3], holder, now)
if free <= 0 then return 0 end
local waiting = redis.call('ZRANGE', KEYS[2], 0, -1)
local rank = 0
for _, other in ipairs(waiting) do
  if other == holder then break end
  if now - tonumber(redis.call('HGET', KEYS[3], other) or '0') > tonumber(ARGV[4]) then
    redis.call('ZREM', KEYS[2], other)
    redis.call('HDEL', KEYS[3], other)
  else
    rank = rank + 1
  end
end
if rank >= free then return 0 end
redis.call('ZREM', KEYS[2], holder)
redis.call('HDEL', KEYS[3], holder)
return grant()
`);

export interface Slots {
  /** Takes a slot, or stands in line for it; ask again within 4 s to keep the place. */
  take(name: string, limit: number, holder: OperationId): Promise<boolean>;
  /** Gives up a slot or the place in line, and wakes who waits. */
  release(name: string, holder: OperationId): Promise<void>;
  renew(names: readonly string[], holder: OperationId): Promise<void>;
  /** How many are taken. */
  taken(names: readonly string[]): Promise<number[]>;
  /** Holders that have not renewed for 30 s. */
  expired(name: string): Promise<OperationId[]>;
}

export function createSlots(redis: RedisConnection, keys: Keys, now: () => number = Date.now): Slots {
  const seen = (name: string) => `${keys.slotQueue(name)}:seen`;
  return {
    async take(name, limit, holder) {
      const scriptKeys = [keys.slot(name), keys.slotQueue(name), seen(name), keys.held(holder)];
      return (await runScript(redis, TAKE, scriptKeys, [holder, limit, now(), WAITER_GONE_MS, name])) === 1;
    },
    async release(name, holder) {
      const pipeline = redis.pipeline();
      pipeline.hdel(keys.slot(name), holder);
      pipeline.zrem(keys.slotQueue(name), holder);
      pipeline.hdel(seen(name), holder);
      pipeline.srem(keys.held(holder), name);
      pipeline.publish(keys.wake, `free ${name}`);
      await pipeline.exec();
    },
    async renew(names, holder) {
      const pipeline = redis.pipeline();
      for (const name of names) pipeline.hset(keys.slot(name), holder, now());
      await pipeline.exec();
    },
    async taken(names) {
      const pipeline = redis.pipeline();
      for (const name of names) pipeline.hlen(keys.slot(name));
      const replies = (await pipeline.exec()) ?? [];
      return replies.map(([, count]) => z.number().catch(0).parse(count));
    },
    async expired(name) {
      const holders = await redis.hgetall(keys.slot(name));
      return Object.entries(holders)
        .filter(([, at]) => now() - Number(at) > EXPIRED_MS)
        .map(([holder]) => holder as OperationId); // written by take
    },
  };
}
