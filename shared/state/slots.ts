/**
 * Slots: units of a limit over all workers (a node, a template replica, a storage).
 * The holder is an operation, not a run: a slot outlives the worker that took it, and the run that takes over has it already.
 * A slot never ends by time alone: its PVE task may still run. `expired` lists the candidates; the sweeper proves and releases.
 */
import { z } from "zod";
import { FleetError } from "../errors.ts";
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
 * KEYS: holders, waiters, last seen, what the holder holds, its operation. ARGV: holder, limit, now, gone after, name, fence.
 * Returns 1 granted, 0 in line, -1 not this run's to take.
 */
const TAKE = defineScript(`
local holder, limit, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local fence, ended = unpack(redis.call('HMGET', KEYS[5], 'fence', 'endedAt'))
if fence ~= ARGV[6] or ended then return -1 end
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

/** KEYS and ARGV as in TAKE; without a fence for the fleet's own clockwork. */
const RELEASE = defineScript(`
local holder, channel, name, fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if fence ~= '' and redis.call('HGET', KEYS[5], 'fence') ~= fence then return 0 end
redis.call('HDEL', KEYS[1], holder)
redis.call('ZREM', KEYS[2], holder)
redis.call('HDEL', KEYS[3], holder)
redis.call('SREM', KEYS[4], name)
redis.call('PUBLISH', channel, 'free '..name)
return 1
`);

/** The place in line only: a slot that the operation holds already stays. */
const LEAVE_LINE = defineScript(`
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[2], 'free '..ARGV[3])
`);

/** Never brings a slot back that was given up meanwhile. Returns whether it is still held. */
const RENEW = defineScript(`
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
`);

/** A run: the operation that holds, and the fence that proves it is the newest run of it. */
export interface SlotHolder {
  id: OperationId;
  fence: string;
}

export interface Slots {
  /** Takes a slot, or stands in line for it; ask again within 4 s to keep the place. Throws `lock_lost` for an older run. */
  take(name: string, limit: number, holder: SlotHolder): Promise<boolean>;
  /** Gives up a slot or the place in line, and wakes who waits. An older run changes nothing. */
  release(name: string, holder: SlotHolder): Promise<void>;
  /** Gives up the place in line, so that those behind need not wait for it to time out. */
  leaveLine(name: string, id: OperationId): Promise<void>;
  /** For the clockwork, about operations that have ended. */
  reap(name: string, id: OperationId): Promise<void>;
  /** Returns those that the operation does not hold any more. */
  renew(names: readonly string[], id: OperationId): Promise<string[]>;
  /** Names of the slots that an operation holds. */
  held(id: OperationId): Promise<string[]>;
  /** How many are taken. */
  taken(names: readonly string[]): Promise<number[]>;
  /** Holders that have not renewed for 30 s. */
  expired(name: string): Promise<OperationId[]>;
}

export function createSlots(redis: RedisConnection, keys: Keys, now: () => number = Date.now): Slots {
  const keysOf = (name: string, id: OperationId) => [
    keys.slot(name),
    keys.slotQueue(name),
    `${keys.slotQueue(name)}:seen`,
    keys.held(id),
    keys.operation(id),
  ];
  const release = async (name: string, id: OperationId, fence: string) => {
    await runScript(redis, RELEASE, keysOf(name, id), [id, keys.wake, name, fence]);
  };
  return {
    async take(name, limit, { id, fence }) {
      const taken = await runScript(redis, TAKE, keysOf(name, id), [id, limit, now(), WAITER_GONE_MS, name, fence]);
      if (taken === -1)
        throw new FleetError("lock_lost", `this run of ${id} may take no slot any more`, { facts: { operation: id } });
      return taken === 1;
    },
    release: (name, { id, fence }) => release(name, id, fence),
    async leaveLine(name, id) {
      await runScript(redis, LEAVE_LINE, keysOf(name, id), [id, keys.wake, name]);
    },
    reap: (name, id) => release(name, id, ""),
    async renew(names, id) {
      const renewed = await Promise.all(names.map((name) => runScript(redis, RENEW, [keys.slot(name)], [id, now()])));
      return names.filter((_, at) => renewed[at] === 0);
    },
    held: (id) => redis.smembers(keys.held(id)),
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
