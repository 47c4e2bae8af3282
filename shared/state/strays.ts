/**
 * What Redis may have lost: with its last writes (a start without the newest of its file, a failover to a replica that
 * was behind) go records whose containers exist all the same.
 */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import { NodeName, OperationId, SandboxId, TeamId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript, type Script } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";

/** Who has leased the VMID of a stray while it is removed, so that no provision gets it meanwhile. */
export const STRAY = "stray";

/** A beat of ours that Redis does not know any more, this long before its last one: it was given other data. */
const SET_BACK_MS = 10_000;

/**
 * Writes the time down; on a server other than the one of the last beat, or with data from before this process' last beat,
 * notes that writes since then may be missing. ARGV: now, this process' last beat or 0, an id to be `origin` → origin.
 */
const BEAT = withPrelude(`
local server = serverId()
local known, alive = unpack(redis.call('HMGET', P..':pulse', 'server', 'at'))
if known and (known ~= server or tonumber(ARGV[3]) - alive > ${SET_BACK_MS}) then
  redis.call('LPUSH', P..':losses', alive..' '..ARGV[2])
  redis.call('LTRIM', P..':losses', 0, 99)
end
redis.call('HSET', P..':pulse', 'server', server, 'at', ARGV[2])
redis.call('SET', P..':origin', ARGV[4], 'NX')
return redis.call('GET', P..':origin')
`);

/**
 * Gives a container to the provision of its stamp, if that has none and has asked for none as far as Redis knows.
 * A run that is at it loses its claim. ARGV: operation, sandbox, node, vmid, now → 1 or 0.
 */
const ADOPT = withPrelude(`
local id, sandbox, node, vmid, now = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local key, sk, leases = opKey(id), sbxKey(sandbox), P..':vmids'
local status, kind, owned = unpack(redis.call('HMGET', key, 'status', 'kind', 'sandbox'))
if not status or ENDED[status] or not (kind == 'provision' or kind == 'template') or owned ~= sandbox then return 0 end
local state, leased, placed = unpack(redis.call('HMGET', sk, 'state', 'vmid', 'node'))
if state ~= 'placing' then return 0 end
local holder = redis.call('HGET', leases, vmid)
if holder and holder ~= sandbox then return 0 end
if leased and leased ~= vmid and redis.call('HGET', leases, leased) == sandbox then
  redis.call('HDEL', leases, leased)
  redis.call('ZADD', P..':vmids-freed', now, leased)
end
redis.call('HSET', leases, vmid, sandbox)
if placed and placed ~= node then
  local demand = redis.call('HGET', P..':reserved:'..placed, sandbox)
  redis.call('HDEL', P..':reserved:'..placed, sandbox)
  if demand then redis.call('HSET', P..':reserved:'..node, sandbox, demand) end
  for _, changed in ipairs({placed, node}) do redis.call('HINCRBY', P..':reserved-changes', changed, 1) end
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

/** ARGV: VMID, now, then for one that was removed: operation, sandbox, team, event JSON. */
const FORGET = withPrelude(`
if redis.call('HGET', P..':vmids', ARGV[2]) == '${STRAY}' then
  redis.call('HDEL', P..':vmids', ARGV[2])
  redis.call('ZADD', P..':vmids-freed', ARGV[3], ARGV[2])
end
if redis.call('HDEL', P..':strays', ARGV[2]) == 1 and ARGV[4] then
  emit('container.removed', ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
end
return 'ok'
`);

/** A container in quarantine: it stands in the fleet's range and pool, and no sandbox has leased its VMID. */
export const Quarantined = z.object({
  node: NodeName,
  name: z.string().optional(),
  /** ms since the epoch. */
  since: z.number(),
  /** Not looked at before. */
  lookAt: z.number(),
  /** What was found by the last look; absent before the first. `reason` is for people. */
  verdict: z.enum(["wait", "remove", "later", "keep", "stranger"]).optional(),
  reason: z.string().optional(),
  /** When it goes; absent before the first look, and where only an operator can decide. */
  removeAt: z.number().optional(),
  operation: OperationId.optional(),
  sandbox: SandboxId.optional(),
  team: TeamId.optional(),
});
export type Quarantined = z.output<typeof Quarantined>;

/** From when to when (ms) what was written may be missing: the last beat before, and the first after. */
export interface Loss {
  from: number;
  until: number;
}

const Losses = z.array(
  z.string().transform((text): Loss => {
    const [from = 0, until = from] = text.split(" ").map(Number);
    return { from, until };
  }),
);

export interface Strays {
  /** To be called every second or so. */
  beat(): Promise<void>;
  /** Newest first; at most 100. */
  losses(): Promise<Loss[]>;
  /** Tells what was accepted in this Redis from what another fleet of the same prefix accepted in its own. */
  origin(): Promise<string>;
  /** The same as of the last beat, or of the last call of `origin`. */
  lastOrigin(): string;
  /** Those in quarantine, by VMID. */
  list(): Promise<Map<Vmid, Quarantined>>;
  /** Puts it into quarantine, or notes what was found out about it. */
  note(vmid: Vmid, entry: Quarantined): Promise<void>;
  /** Takes the VMID of a stray on the list, before it is removed; false when it is somebody's, or no stray any more. */
  lease(vmid: Vmid): Promise<boolean>;
  /** It is gone, or has an owner again: off the list, and its VMID free. With `removed` an event tells that we removed it. */
  forget(vmid: Vmid, removed?: Removed): Promise<void>;
  /** Whether the provision took the container over. */
  adopt(stamp: { operation: OperationId; sandbox: SandboxId }, place: { node: NodeName; vmid: Vmid }): Promise<boolean>;
}

export interface Removed {
  operation: OperationId;
  sandbox: SandboxId;
  team: TeamId;
  node: NodeName;
  reason: string;
}

export function createStrays(redis: RedisConnection, keys: Keys, now: () => number = Date.now): Strays {
  const run = (script: Script, ...args: (string | number)[]) =>
    runScript(redis, script, [keys.open], [keys.prefix, ...args]);
  let lastBeat = 0;
  let lastOrigin = "";
  return {
    async beat() {
      const at = now();
      lastOrigin = z.string().parse(await run(BEAT, at, lastBeat, randomUUID()));
      lastBeat = at;
    },
    losses: async () => Losses.parse(await redis.lrange(keys.losses, 0, -1)),
    async origin() {
      await redis.set(keys.origin, randomUUID(), "NX");
      lastOrigin = z.string().parse(await redis.get(keys.origin));
      return lastOrigin;
    },
    lastOrigin: () => lastOrigin,
    async list() {
      const entries = Object.entries(await redis.hgetall(keys.strays));
      return new Map(entries.map(([vmid, json]) => [Vmid.parse(Number(vmid)), Quarantined.parse(JSON.parse(json))]));
    },
    async note(vmid, entry) {
      await redis.hset(keys.strays, vmid, JSON.stringify(entry));
    },
    lease: async (vmid) => (await run(LEASE, vmid)) === 1,
    async forget(vmid, removed) {
      if (removed === undefined) return void (await run(FORGET, vmid, now()));
      const { operation, sandbox, team, ...data } = removed;
      await run(FORGET, vmid, now(), operation, sandbox, team, JSON.stringify({ ...data, vmid }));
    },
    adopt: async ({ operation, sandbox }, { node, vmid }) =>
      (await run(ADOPT, operation, sandbox, node, vmid, now())) === 1,
  };
}
