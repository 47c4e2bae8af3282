/** Limits of teams, what they use of them, and letting those go that wait for room. */
import { z } from "zod";
import { OperationId, TeamId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript, type Script } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";
import { QUOTA_NAMES, type QuotaName } from "./quota-names.ts";

/** Whose limits: of a team, or of every team that has none of its own. */
export const QuotaOwner = z.union([TeamId, z.literal("*")], { error: 'must be a team, or "*" for every team' });
export type QuotaOwner = z.output<typeof QuotaOwner>;

const Limit = z.int().min(0).max(1_000_000_000).nullable().optional();
/** `null`: none, whatever `*` has; left out: as `*` has it. */
export const Limits = z.strictObject({ sandboxes: Limit, provisions: Limit, execs: Limit, rate: Limit });
export type Limits = z.output<typeof Limits>;

/** What a team may have, has, and waits for. */
export interface QuotaUse {
  /** Those of `*` included; left out: none. */
  limits: Partial<Record<QuotaName, number>>;
  /** The rate is counted while it has a limit. */
  used: Record<QuotaName, number>;
  /** Operations that wait for room. */
  waiting: number;
}

/** ARGV: owner, limits JSON: what it names is set, the rest stays as it is. Returns all of them. */
const SET = withPrelude(`
local limits = cjson.decode(redis.call('HGET', P..':quotas', ARGV[2]) or '{}')
for name, limit in pairs(cjson.decode(ARGV[3])) do limits[name] = limit end
local json = cjson.encode(limits)
redis.call('HSET', P..':quotas', ARGV[2], json)
return json
`);

/** ARGV: team → JSON. */
const LOOK = withPrelude(`
local team, used, waiting = ARGV[2], {}, 0
for _, quota in ipairs({${QUOTA_NAMES.map((name) => `'${name}'`).join(",")}}) do used[quota] = usedOf(team, quota) end
for _, class in ipairs(CLASSES) do waiting = waiting + redis.call('ZCARD', quotaLine(class, team)) end
return cjson.encode({limits = limitsOf(team) or {}, used = used, waiting = waiting})
`);

/** ARGV: team → how many had room, then those of them that may go now. */
const ADMIT = withPrelude(`
local out, admitted = admit(ARGV[2], {})
table.insert(out, 1, admitted)
return out
`);

/** Forgets what counts and has no record any more: somebody removed it by hand. ARGV: team → how many. */
const MEND = withPrelude(`
local team, mended, left = ARGV[2], 0, 0
local function stands(id)
  local status = redis.call('HGET', opKey(id), 'status')
  return status and not ENDED[status]
end
for _, class in ipairs(CLASSES) do
  for _, key in ipairs({quotaLine(class, team), flight(class, team)}) do
    local ids = redis.call('TYPE', key).ok == 'zset' and redis.call('ZRANGE', key, 0, -1) or redis.call('SMEMBERS', key)
    for _, id in ipairs(ids) do
      if stands(id) then left = left + 1
      else
        uncount(id, team, class)
        mended = mended + 1
      end
    end
  end
end
for _, id in ipairs(redis.call('ZRANGE', P..':team:'..team, 0, -1)) do
  if redis.call('EXISTS', sbxKey(id)) == 1 then left = left + 1
  else
    redis.call('ZREM', P..':team:'..team, id)
    redis.call('ZREM', P..':sandboxes', id)
    mended = mended + 1
  end
end
if left == 0 then redis.call('SREM', P..':teams', team) end
return mended
`);

const Use = z.object({
  limits: z.partialRecord(z.enum(QUOTA_NAMES), z.number()),
  used: z.record(z.enum(QUOTA_NAMES), z.number()),
  waiting: z.number(),
});

export interface Quotas {
  /** What was set, by owner. */
  all(): Promise<Map<QuotaOwner, Limits>>;
  set(owner: QuotaOwner, limits: Limits): Promise<Limits>;
  /** False: there were none. */
  remove(owner: QuotaOwner): Promise<boolean>;
  look(team: TeamId): Promise<QuotaUse>;
  /** For the clockwork: teams with operations that wait for room. */
  waitingTeams(): Promise<TeamId[]>;
  /** Lets some go that have room now: how many, and which of them need a job; the others wait for something else now. */
  admit(team: TeamId): Promise<{ admitted: number; ready: OperationId[] }>;
  /** For the clockwork: makes up for records that somebody removed. Returns how many. */
  mend(): Promise<number>;
}

export function createQuotas(redis: RedisConnection, keys: Keys): Quotas {
  const run = (script: Script, ...args: string[]) => runScript(redis, script, [keys.open], [keys.prefix, ...args]);
  const teams = async (key: string) => TeamId.array().parse(await redis.smembers(key));
  return {
    async all() {
      const entries = Object.entries(await redis.hgetall(keys.quotas));
      return new Map(entries.map(([owner, json]) => [QuotaOwner.parse(owner), Limits.parse(JSON.parse(json))]));
    },
    set: async (owner, limits) => Limits.parse(JSON.parse(String(await run(SET, owner, JSON.stringify(limits))))),
    remove: async (owner) => (await redis.hdel(keys.quotas, owner)) === 1,
    look: async (team) => Use.parse(JSON.parse(String(await run(LOOK, team)))),
    waitingTeams: () => teams(keys.quotaWaiting),
    async admit(team) {
      const [admitted, ...ready] = z.tuple([z.number()], OperationId).parse(await run(ADMIT, team));
      return { admitted, ready };
    },
    async mend() {
      let mended = 0;
      for (const team of await teams(keys.teams)) mended += Number(await run(MEND, team));
      return mended;
    },
  };
}
