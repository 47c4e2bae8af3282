/**
 * What Redis may have lost: with its last writes (a start without the newest of its file, a failover to a replica that
 * was behind) go records whose containers exist all the same.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import type { NodeName, OperationId, SandboxId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript, type Script } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude, withQuotas } from "./scripts.ts";

/** Who has leased the VMID of a stray while it is removed, so that no provision gets it meanwhile. */
export const STRAY = "stray";

/**
 * Writes the time down; on a server other than the one of the last beat, notes that writes since then may be missing.
 * ARGV: now.
 */
const BEAT = withPrelude(`
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or 'one'
local known, alive = unpack(redis.call('HMGET', P..':pulse', 'server', 'at'))
if known and known ~= server then
  redis.call('LPUSH', P..':losses', alive)
  redis.call('LTRIM', P..':losses', 0, 99)
  redis.call('HSET', P..':pulse', 'lostAt', ARGV[2])
end
redis.call('HSET', P..':pulse', 'server', server, 'at', ARGV[2])
return 'ok'
`);

/**
 * Gives a container to the provision of its stamp, if that has none and has asked for none as far as Redis knows.
 * A run that is at it loses its claim. ARGV: operation, sandbox, node, vmid, now → 1 or 0.
 */
const ADOPT = withQuotas(`
local id, sandbox, node, vmid, now = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local key, sk, leases = opKey(id), sbxKey(sandbox), P..':vmids'
local status, kind, owned = unpack(redis.call('HMGET', key, 'status', 'kind', 'sandbox'))
if not status or ENDED[status] or not (kind == 'provision' or kind == 'template') or owned ~= sandbox then return 0 end
local state, leased, placed = unpack(redis.call('HMGET', sk, 'state', 'vmid', 'node'))
if state ~= 'placing' then return 0 end
local holder = redis.call('HGET', leases, vmid)
if holder and holder ~= sandbox then return 0 end
if leased and leased ~= vmid and redis.call('HGET', leases, leased) == sandbox then redis.call('HDEL', leases, leased) end
redis.call('HSET', leases, vmid, sandbox)
if placed and placed ~= node then
  local demand = redis.call('HGET', P..':reserved:'..placed, sandbox)
  redis.call('HDEL', P..':reserved:'..placed, sandbox)
  if demand then redis.call('HSET', P..':reserved:'..node, sandbox, demand) end
end
redis.call('HSET', key, 'step', cjson.encode({name = 'clone', at = tonumber(now), open = false}))
-- Redis forgot that it had its turn, or that a quota had let it go; the sweeper sees that it has no job.
if redis.call('HGET', key, 'parked') == '1' then
  local team, class = unpack(redis.call('HMGET', key, 'team', 'class'))
  if class then
    uncount(id, team, class)
    countIn(id, team, class, nil)
  end
  leaveLine(id, {})
  redis.call('HSET', key, 'parked', 0)
  redis.call('HDEL', key, 'quota', 'waitingFor')
end
-- By the fence: a revision that is just one newer would look like the run's own next write, sent again.
redis.call('HDEL', key, 'fence')
setSandbox(sandbox, {set = {'state', 'cloning', 'node', node, 'vmid', vmid}, unset = {}}, now, id, 0)
return 1
`);

/**
 * Leases the VMID of a stray for its removal, for as long as it is on the list: another round may have removed it while
 * this one slept. ARGV: VMID → 1 or 0.
 */
const LEASE = withPrelude(`
if redis.call('HEXISTS', P..':strays', ARGV[2]) == 0 then return 0 end
redis.call('HSETNX', P..':vmids', ARGV[2], '${STRAY}')
return redis.call('HGET', P..':vmids', ARGV[2]) == '${STRAY}' and 1 or 0
`);

/** ARGV: VMID. */
const FORGET = withPrelude(`
if redis.call('HGET', P..':vmids', ARGV[2]) == '${STRAY}' then redis.call('HDEL', P..':vmids', ARGV[2]) end
redis.call('HDEL', P..':strays', ARGV[2])
return 'ok'
`);

export interface Strays {
  /** To be called every second or so. */
  beat(): Promise<void>;
  /** Times (ms) from which on writes may be missing, newest first; at most 100. */
  losses(): Promise<number[]>;
  /** Tells what was accepted in this Redis from what another fleet of the same prefix accepted in its own. */
  origin(): Promise<string>;
  /** When it was last noticed (ms) that writes may be missing. */
  lostAt(): Promise<number | undefined>;
  /** Takes the VMID of a stray on the list, before it is removed; false when it is somebody's, or no stray any more. */
  lease(vmid: Vmid): Promise<boolean>;
  /** It is gone, or has an owner again: off the list, and its VMID free. */
  forget(vmid: Vmid): Promise<void>;
  /** Whether the provision took the container over. */
  adopt(stamp: { operation: OperationId; sandbox: SandboxId }, place: { node: NodeName; vmid: Vmid }): Promise<boolean>;
}

export function createStrays(redis: RedisConnection, keys: Keys, now: () => number = Date.now): Strays {
  const run = (script: Script, ...args: (string | number)[]) =>
    runScript(redis, script, [keys.open], [keys.prefix, ...args]);
  return {
    async beat() {
      await run(BEAT, now());
    },
    losses: async () =>
      z.coerce
        .number()
        .array()
        .parse(await redis.lrange(keys.losses, 0, -1)),
    async origin() {
      await redis.set(keys.origin, randomUUID(), "NX");
      return z.string().parse(await redis.get(keys.origin));
    },
    lostAt: async () =>
      z.coerce
        .number()
        .optional()
        .parse((await redis.hget(keys.pulse, "lostAt")) ?? undefined),
    lease: async (vmid) => (await run(LEASE, vmid)) === 1,
    async forget(vmid) {
      await run(FORGET, vmid);
    },
    adopt: async ({ operation, sandbox }, { node, vmid }) =>
      (await run(ADOPT, operation, sandbox, node, vmid, now())) === 1,
  };
}
