/** Pools: sandboxes that are made before they are asked for, so that a provision is there in milliseconds. */
import { z } from "zod";
import { NodeName, POOL_TEAM, SandboxId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";

/** How many members a pool has: `min` whatever is asked for, up to `max` as demand grows. */
export const PoolSettings = z
  .strictObject({ min: z.int().min(0).max(10_000), max: z.int().min(1).max(10_000) })
  .refine(({ min, max }) => min <= max, { path: ["max"], error: "must be at least min" });
export type PoolSettings = z.output<typeof PoolSettings>;

/** A member that has not been seen ready for this long is given to nobody. */
const READY_MS = 20_000;

const count = z.coerce.number().default(0);
export const PoolCounts = z.object({
  /** Provisions that the pool could have served, and how many it did. */
  asked: count,
  hits: count,
  /** ms from acceptance to the claim over all hits. */
  claimMs: count,
  /** Members that were made, and ms from acceptance until they were ready over all of them. */
  made: count,
  madeMs: count,
  /** ms that members were ready for before they were claimed or removed. */
  idleMs: count,
  /** Of the makings since the last good one, and when (ms since the epoch). */
  failures: count,
  failedAt: count,
  /** Makings that were asked for since the pool was set (ms since the epoch). */
  fills: count,
  since: count,
  /** How many it is to have just now. */
  target: count,
  /** How many are asked for a second, of late: `seen` of `asked` were counted at `at`. */
  rate: count,
  seen: count,
  at: count,
});
export type PoolCounts = z.output<typeof PoolCounts>;

/** A member that is taken for a provision, and its container. */
export interface Taken {
  member: SandboxId;
  node: NodeName;
  vmid: Vmid;
  hostname: string | undefined;
  address: string;
  /** Its exec token. */
  sealed: string | null;
}

/**
 * Takes a member off the list, so that nobody else gets it meanwhile; it comes back by itself with its next probe. Not the
 * claim: that is a part of the write that ends the provision, or leads it on. None that was ready before Redis was started:
 * it may have been claimed in a second that Redis has lost. But a sandbox whose name its stamp bears gets it back.
 * ARGV: template, sandbox of the provision, for batch work 1 → [] or [member, node, VMID, host name, address, sealed].
 */
const TAKE = withPrelude(`
local template, sandbox = ARGV[2], ARGV[3]
local json = redis.call('HGET', P..':pools', template)
if not json then return {} end
local server, ready = serverId(), poolReady(template)
local own = redis.call('HGET', P..':pools-owned', sandbox)
local function give(id)
  redis.call('ZREM', ready, id)
  local state, on, node, vmid, hostname, address =
    unpack(redis.call('HMGET', sbxKey(id), 'state', 'warmOn', 'node', 'vmid', 'hostname', 'address'))
  if state ~= 'warm' or not node or not address or not (on == server or id == own) then return nil end
  return {id, node, vmid, hostname, address, redis.call('GET', P..':secret:'..id)}
end
local taken = own and give(own)
if own then redis.call('HDEL', P..':pools-owned', sandbox) end
if taken then return taken end
local keep = ARGV[4] == '1' and cjson.decode(json).min or 0
local since = string.format('%.0f', nowMs() - ${READY_MS})
while redis.call('ZCOUNT', ready, since, '+inf') > keep do
  taken = give(redis.call('ZREVRANGEBYSCORE', ready, '+inf', since, 'LIMIT', 0, 1)[1])
  if taken then return taken end
end
return {}
`);

/** Members that answered just now: claimable, for a while, unless something is done to them. ARGV: template, member… */
const SEEN = withPrelude(`
for at = 3, #ARGV do
  local id = ARGV[at]
  local state, pool, on = unpack(redis.call('HMGET', sbxKey(id), 'state', 'pool', 'warmOn'))
  if state == 'warm' and pool == ARGV[2] and on == serverId() and redis.call('LLEN', P..':changes:'..id) == 0 then
    redis.call('ZADD', poolReady(pool), string.format('%.0f', nowMs()), id)
  end
end
return 'ok'
`);

/** It is given to nobody: its score, below 0, tells since when it is silent. ARGV: template, member. */
const SILENT = withPrelude(`
local key, id = poolReady(ARGV[2]), ARGV[3]
if redis.call('HGET', sbxKey(id), 'state') ~= 'warm' then return 'ok' end
if tonumber(redis.call('ZSCORE', key, id) or 1) > 0 then redis.call('ZADD', key, string.format('%.0f', -nowMs()), id) end
return 'ok'
`);

const SERVER = withPrelude(`return serverId()`);

const TakenReply = z.tuple([
  SandboxId,
  NodeName,
  z.coerce.number().pipe(Vmid),
  z.string().nullable(),
  z.string(),
  z.string().nullable(),
]);

/** When members were last seen ready; negative: since when they are silent. By the server's clock, now. */
export interface Seen {
  now: number;
  members: ReadonlyMap<string, number>;
}

export interface Pools {
  /** What was set, by template. */
  all(): Promise<Map<string, PoolSettings>>;
  set(template: string, settings: PoolSettings): Promise<void>;
  /** False: there was none. */
  remove(template: string): Promise<boolean>;
  counts(template: string): Promise<PoolCounts>;
  /** What the clockwork counts of a pool; of one that was removed it runs out. */
  keepCounts(template: string, values: Readonly<Record<string, number>>): Promise<void>;
  /** Null: there is none ready. */
  take(template: string, sandbox: SandboxId, options: { batch: boolean }): Promise<Taken | null>;
  /** These answered just now. */
  seen(template: string, members: readonly SandboxId[]): Promise<void>;
  /** It did not, and is given to nobody until it does. */
  silent(template: string, member: SandboxId): Promise<void>;
  lastSeen(template: string): Promise<Seen>;
  /** The Redis server that is asked, by its start: members that were ready before that are given to nobody. */
  server(): Promise<string>;
  /** The sandbox had claimed the member, and Redis lost it: it gets that one when it asks again. */
  own(sandbox: SandboxId, member: SandboxId): Promise<void>;
  /** Ids of all members, those in the making included. */
  members(): Promise<SandboxId[]>;
}

/** Of a pool that was removed. */
const COUNTS_KEPT_SEC = 3_600;

export function createPools(redis: RedisConnection, keys: Keys): Pools {
  const run = (script: typeof TAKE, ...args: string[]) => runScript(redis, script, [keys.open], [keys.prefix, ...args]);
  return {
    async all() {
      const entries = Object.entries(await redis.hgetall(keys.pools));
      return new Map(entries.map(([template, json]) => [template, PoolSettings.parse(JSON.parse(json))]));
    },
    async set(template, settings) {
      await redis.hset(keys.pools, template, JSON.stringify(settings));
    },
    async remove(template) {
      const removed = await redis.hdel(keys.pools, template);
      // Its members count there as they go; for one that is set anew soon it goes on.
      await redis.expire(keys.poolCounts(template), COUNTS_KEPT_SEC);
      return removed === 1;
    },
    async keepCounts(template, values) {
      const key = keys.poolCounts(template);
      await redis.multi().hset(key, values).persist(key).exec();
      // Who removed it meanwhile may have let the counts run out before we kept them.
      if ((await redis.hexists(keys.pools, template)) === 0) await redis.expire(key, COUNTS_KEPT_SEC);
    },
    counts: async (template) => PoolCounts.parse(await redis.hgetall(keys.poolCounts(template))),
    async take(template, sandbox, { batch }) {
      const reply = await run(TAKE, template, sandbox, batch ? "1" : "");
      if (Array.isArray(reply) && reply.length === 0) return null;
      const [member, node, vmid, hostname, address, sealed] = TakenReply.parse(reply);
      return { member, node, vmid, hostname: hostname ?? undefined, address, sealed };
    },
    async seen(template, members) {
      if (members.length > 0) await run(SEEN, template, ...members);
    },
    async silent(template, member) {
      await run(SILENT, template, member);
    },
    async lastSeen(template) {
      const [[sec = 0, us = 0], flat] = await Promise.all([
        redis.time(),
        redis.zrange(keys.poolReady(template), "0", "-1", "WITHSCORES"),
      ]);
      const entries = flat.flatMap((id, at) => (at % 2 === 0 ? [[id, Number(flat[at + 1])] as const] : []));
      return { now: Number(sec) * 1_000 + Number(us) / 1_000, members: new Map(entries) };
    },
    server: async () => String(await run(SERVER)),
    async own(sandbox, member) {
      await redis.hset(keys.poolsOwned, sandbox, member);
    },
    members: async () => SandboxId.array().parse(await redis.zrange(keys.teamSandboxes(POOL_TEAM), "0", "-1")),
  };
}
