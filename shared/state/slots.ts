/**
 * Slots: units of a limit over all workers (a node, a template replica, a storage).
 * The holder is an operation, not a run: a slot outlives the worker that took it, and the run that takes over has it already.
 * A slot never ends by time alone: its PVE task may still run. `expired` lists the candidates; the sweeper proves and releases.
 */
import { z } from "zod";
import { FleetError } from "../errors.ts";
import type { NodeName, OperationId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { defineScript, runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";

const NODE = "node-";

/** Names of slots. */
export const slotOf = {
  node: (node: string) => `${NODE}${node}`,
  replica: (node: string, vmid: number) => `replica-${node}-${vmid}`,
  storage: (storage: string) => `storage-${storage}`,
};

/** A waiter that has not asked again for this long has gone. */
const WAITER_GONE_MS = 4_000;
/** A holder that has not renewed for this long has no run: they renew every 1.5 s. */
const IDLE_MS = 5_000;
/** A holder that has not renewed for this long may be dead. */
const EXPIRED_MS = 30_000;

/** A server started anew, or another master, may lack the last writes: its id, unless it has been told what runs on the node. */
const UNADOPTED = `
local function unadoptedBy(adopted, node)
  local server = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or 'one'
  return redis.call('HGET', adopted, node) ~= server and server or nil
end`;

/**
 * First come, first served: granted only to those who wait longest.
 * KEYS: holders, waiters, last seen, what the holder holds, its operation, adopted nodes.
 * ARGV: holder, limit, now, gone after, name, fence, node or ''.
 * Returns 1 granted, 0 in line, -1 not this run's to take; a node whose slots this Redis can't know yet: the server's id.
 */
const TAKE = defineScript(`${UNADOPTED}
local holder, limit, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local fence, ended = unpack(redis.call('HMGET', KEYS[5], 'fence', 'endedAt'))
if fence ~= ARGV[6] or ended then return -1 end
local unadopted = ARGV[7] ~= '' and unadoptedBy(KEYS[6], ARGV[7])
if unadopted then return unadopted end
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

/** For the clockwork: without standing in line. KEYS: holders, adopted nodes. ARGV: holder, limit, now, node. Returns as TAKE. */
const TRY_TAKE = defineScript(`${UNADOPTED}
local unadopted = unadoptedBy(KEYS[2], ARGV[4])
if unadopted then return unadopted end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
return redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[3])
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

/**
 * Who holds a slot: an operation, or a task of ours whose operation Redis does not know to hold it (it lost its last
 * writes): that one holds until it has ended.
 */
export type Holder = OperationId | TaskHolder;
type TaskHolder = `task:${string}`;

const TASK = "task:";
const toHolder = (upid: string): TaskHolder => `${TASK}${upid}`;
export const isTaskHolder = (holder: Holder): holder is TaskHolder => holder.startsWith(TASK);
/** The UPID of the task that holds. */
export const taskOf = (holder: TaskHolder): string => holder.slice(TASK.length);

export type Taken = "taken" | "in line" | { unadopted: NodeName; server: string };

export interface Slots {
  /**
   * Takes a slot, or stands in line for it; ask again within 4 s to keep the place. Throws `lock_lost` for an older run.
   * `unadopted`: this Redis server (by its id) can't vouch for the slots of the node: see `adopt`.
   */
  take(name: string, limit: number, holder: SlotHolder): Promise<Taken>;
  /** A node's slot for the clockwork, which acts for an operation that has ended or is unknown; given back with `reap`. */
  tryTake(node: NodeName, limit: number, holder: Holder): Promise<Exclude<Taken, "in line"> | "busy">;
  /** Lets tasks that run on a node hold their slots, then opens the node's slots to all until Redis starts anew. */
  adopt(node: NodeName, server: string, tasks: readonly { upid: string; slots: readonly string[] }[]): Promise<void>;
  /** Who holds a slot. */
  holders(name: string): Promise<Holder[]>;
  /** Gives up a slot or the place in line, and wakes who waits. An older run changes nothing. */
  release(name: string, holder: SlotHolder): Promise<void>;
  /** Gives up the place in line, so that those behind need not wait for it to time out. */
  leaveLine(name: string, id: OperationId): Promise<void>;
  /** For the clockwork, about operations and tasks that have ended. */
  reap(name: string, holder: Holder): Promise<void>;
  /** Returns those that the operation does not hold any more. */
  renew(names: readonly string[], id: OperationId): Promise<string[]>;
  /** Names of the slots that an operation holds. */
  held(id: OperationId): Promise<string[]>;
  /** How many are taken. */
  taken(names: readonly string[]): Promise<number[]>;
  /** An operation that holds one of the slots and has no run right now, so that nothing it does will free it. */
  idleHolder(names: readonly string[]): Promise<OperationId | undefined>;
  /** Operations that have not renewed for 30 s, and tasks. */
  expired(name: string): Promise<Holder[]>;
}

export function createSlots(redis: RedisConnection, keys: Keys, now: () => number = Date.now): Slots {
  const keysOf = (name: string, id: Holder) => [
    keys.slot(name),
    keys.slotQueue(name),
    `${keys.slotQueue(name)}:seen`,
    keys.held(id),
    keys.operation(id),
    keys.adopted,
  ];
  const release = async (name: string, id: Holder, fence: string) => {
    await runScript(redis, RELEASE, keysOf(name, id), [id, keys.wake, name, fence]);
  };
  return {
    async take(name, limit, { id, fence }) {
      const node = name.startsWith(NODE) ? name.slice(NODE.length) : "";
      const args = [id, limit, now(), WAITER_GONE_MS, name, fence, node];
      const taken = await runScript(redis, TAKE, keysOf(name, id), args);
      if (typeof taken === "string") return { unadopted: node as NodeName, server: taken }; // the name was made of one
      if (taken === -1)
        throw new FleetError("lock_lost", `this run of ${id} may take no slot any more`, { facts: { operation: id } });
      return taken === 1 ? "taken" : "in line";
    },
    async tryTake(node, limit, holder) {
      const taken = await runScript(
        redis,
        TRY_TAKE,
        [keys.slot(slotOf.node(node)), keys.adopted],
        [holder, limit, now(), node],
      );
      if (typeof taken === "string") return { unadopted: node, server: taken };
      return taken === 1 ? "taken" : "busy";
    },
    async adopt(node, server, tasks) {
      const pipeline = redis.multi();
      for (const { upid, slots } of tasks)
        for (const name of slots) pipeline.hset(keys.slot(name), toHolder(upid), now());
      pipeline.hset(keys.adopted, node, server);
      await pipeline.exec();
    },
    holders: async (name) => (await redis.hkeys(keys.slot(name))) as Holder[], // written by take and adopt
    release: (name, { id, fence }) => release(name, id, fence),
    async leaveLine(name, id) {
      await runScript(redis, LEAVE_LINE, keysOf(name, id), [id, keys.wake, name]);
    },
    reap: (name, holder) => release(name, holder, ""),
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
    async idleHolder(names) {
      const holders = await Promise.all(names.map((name) => redis.hgetall(keys.slot(name))));
      const idle = holders
        .flatMap((one) => Object.entries(one) as [Holder, string][]) // written by take and adopt
        .find(([holder, at]) => !isTaskHolder(holder) && now() - Number(at) > IDLE_MS);
      return idle?.[0] as OperationId | undefined; // no task, see above
    },
    async expired(name) {
      const holders = await redis.hgetall(keys.slot(name));
      return Object.entries(holders)
        .filter(([holder, at]) => isTaskHolder(holder as Holder) || now() - Number(at) > EXPIRED_MS)
        .map(([holder]) => holder as Holder); // written by take and adopt
    },
  };
}
