/**
 * Groups of consumers that share the event stream: each event goes to one of them, until it has said that it is done.
 * They are Redis' own consumer groups, in fenced steps: Redis alone tells neither that events were removed before they
 * were given to anybody, nor (before 7.0) how far behind a group is.
 */
import { z } from "zod";
import { FleetError } from "../errors.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { defineScript, runScript, type Script } from "../redis/script.ts";
import { checkCursor, type FleetEvent, newestCursor, numberOf, toEvent } from "./events.ts";
import type { Keys } from "./keys.ts";

/** Of each group, the newest of its dead events. */
const DEAD_KEPT = 1_000;
/** Events that one step looks at for one that is wanted. */
const SCAN = 200;
/** A consumer that has said nothing for so long and has nothing in hand is forgotten. */
const FORGET_MS = 3_600_000;
/** How exactly a group's last use is known: each use is written down at most this often. */
const USE_MS = 3_600_000;

/** KEYS: stream, dead events of the group, uses of all groups. ARGV[1]: group. */
const PRELUDE = `
local stream, dead, uses, group = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local function nowMs()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function use()
  local now = nowMs()
  if now - tonumber(redis.call('HGET', uses, group) or 0) > ${USE_MS} then redis.call('HSET', uses, group, string.format('%.0f', now)) end
end
local function newest()
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  return last and last[1] or '0-0'
end
-- As if the event just before this one had been the last to be seen.
local function before(id)
  local ms, n = string.match(id, '^(%d+)-(%d+)$')
  return string.format('%s-%.0f', ms, math.max(n - 1, 0))
end
local function isNext(id, at)
  return tonumber(string.match(id, '-(%d+)$')) == string.match(at, '-(%d+)$') + 1
end
local function toFields(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
-- The last event that was given to any consumer.
local function position()
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return nil end
  for _, flat in ipairs(groups) do
    local one = toFields(flat)
    if one.name == group then return one['last-delivered-id'] end
  end
end
local function bury(id, fields, deliveries)
  redis.call('RPUSH', dead, cjson.encode({cursor = id, fields = fields, deliveries = deliveries}))
  redis.call('LTRIM', dead, -${DEAD_KEPT}, -1)
  redis.call('XACK', stream, group, id)
end
`;

const withGroup = (body: string) => defineScript(PRELUDE + body);

/** ARGV: group, after → 1 for a new one. */
const OPEN = withGroup(`
local after = ARGV[2]
use()
local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if after == '$' then after = newest() elseif after == '0' then after = oldest and before(oldest[1]) or '0-0' end
local made = redis.pcall('XGROUP', 'CREATE', stream, group, after, 'MKSTREAM')
if not made.err then return 1 end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local one = toFields(flat)
  if one.pending == 0 and one.idle > ${FORGET_MS} then redis.call('XGROUP', 'DELCONSUMER', stream, group, one.name) end
end
return 0
`);

/**
 * The next event for a consumer, who is done with the one before.
 * ARGV: group, consumer, cursor of that one or '', ms after which a silent consumer's event goes to another, deliveries
 * allowed, team or '', sandbox or '', type… →
 * ['event', cursor, fields, deliveries], ['dead', cursor, fields, deliveries], ['lost', cursor], ['gap', after, oldest],
 * ['none', after], ['more'] or ['unknown'].
 */
const TAKE = withGroup(`
local consumer, done, silent, allowed, team, sandbox = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local at = position()
if not at then return {'unknown'} end
use()
if done ~= '' then redis.call('XACK', stream, group, done) end
local function isWanted(flat)
  local event = toFields(flat)
  if (team ~= '' and event.team ~= team) or (sandbox ~= '' and event.sandbox ~= sandbox) then return false end
  for i = 8, #ARGV do if event.type == ARGV[i] then return true end end
  return #ARGV < 8
end
-- What was given to this consumer and never arrived or was cut off by its end, then what others have left.
local left = redis.call('XPENDING', stream, group, '-', '+', 1, consumer)[1]
  or redis.call('XPENDING', stream, group, 'IDLE', silent, '-', '+', 1)[1]
if left then
  local id, deliveries = left[1], left[4]
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return {'lost', id} end
  if deliveries >= allowed then
    bury(id, entry[2], deliveries)
    return {'dead', id, entry[2], deliveries}
  end
  redis.call('XCLAIM', stream, group, consumer, 0, id)
  return {'event', id, entry[2], deliveries + 1}
end
local begun = at
local entries = redis.call('XRANGE', stream, '('..at, '+', 'COUNT', ${SCAN})
for _, entry in ipairs(entries) do
  local gap = not isNext(entry[1], at)
  if at ~= begun and (gap or isWanted(entry[2])) then redis.call('XGROUP', 'SETID', stream, group, at) end
  if gap then return {'gap', at, entry[1]} end
  if isWanted(entry[2]) then
    redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', stream, '>')
    return {'event', entry[1], entry[2], 1}
  end
  at = entry[1]
end
if at ~= begun then redis.call('XGROUP', 'SETID', stream, group, at) end
return #entries == ${SCAN} and {'more'} or {'none', at}
`);

/** Goes on after a gap: ARGV: group, from, to → 1, or 0 when somebody else has. */
const SKIP = withGroup(`
if position() ~= ARGV[2] then return 0 end
redis.call('XGROUP', 'SETID', stream, group, before(ARGV[3]))
return 1
`);

/** An event that its consumer still has, or could not be done with. ARGV: group, consumer, cursor, deliveries allowed or 0 → ['again', deliveries], ['dead'] or ['gone']. */
const HOLD = withGroup(`
local consumer, id, allowed = ARGV[2], ARGV[3], tonumber(ARGV[4])
local held = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
if held.err or not held[1] then return {'gone'} end
local deliveries = held[1][4]
if allowed == 0 then
  redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
  return {'again', deliveries}
end
local entry = redis.call('XRANGE', stream, id, id)[1]
if not entry then return {'gone'} end
if deliveries >= allowed then
  bury(id, entry[2], deliveries)
  return {'dead'}
end
redis.call('XCLAIM', stream, group, consumer, 0, id)
return {'again', deliveries + 1}
`);

/** A consumer goes. What it leaves is another's at once. ARGV: group, consumer, cursor that is done or ''. */
const LEAVE = withGroup(`
local consumer = ARGV[2]
if ARGV[3] ~= '' then redis.call('XACK', stream, group, ARGV[3]) end
local left = redis.pcall('XPENDING', stream, group, '-', '+', 10, consumer)
if left.err then return 0 end
for _, one in ipairs(left) do
  redis.call('XCLAIM', stream, group, consumer, 0, one[1], 'IDLE', ${FORGET_MS}, 'JUSTID')
end
if #left == 0 then redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer) end
return 1
`);

/** ARGV: group → 1, or 0 for one that there is not. */
const REMOVE = withGroup(`
redis.call('DEL', dead)
redis.call('HDEL', uses, group)
if redis.call('EXISTS', stream) == 0 then return 0 end
return redis.call('XGROUP', 'DESTROY', stream, group)
`);

/**
 * Forgets groups that nobody used for long; one of unknown use counts from now. Names that begin with a colon are the fleet's
 * own. ARGV: ms, key of dead events but for the group → names.
 */
const FORGET = withGroup(`
local gone, now = {}, nowMs()
if redis.call('EXISTS', stream) == 0 then return gone end
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name = toFields(flat).name
  local at = tonumber(redis.call('HGET', uses, name) or nil)
  if string.sub(name, 1, 1) ~= ':' then
    if not at then
      redis.call('HSET', uses, name, string.format('%.0f', now))
    elseif now - at > tonumber(ARGV[1]) then
      redis.call('DEL', ARGV[2]..name)
      redis.call('HDEL', uses, name)
      redis.call('XGROUP', 'DESTROY', stream, name)
      gone[#gone + 1] = name
    end
  end
end
return gone
`);

/** What every consumer of a group says; the same for all of them, since each event goes to one only. */
export interface GroupFilter {
  team?: string | undefined;
  sandbox?: string | undefined;
  types?: readonly string[] | undefined;
}

export type Taken =
  /** `event` is null for one of a newer version. */
  | { outcome: "event" | "dead"; cursor: string; event: FleetEvent | null; deliveries: number }
  /** Was removed from the stream while somebody had it. */
  | { outcome: "lost"; cursor: string }
  /** Events between were removed before anybody got them. */
  | { outcome: "gap"; after: string; oldest: string }
  /** Nothing beyond this cursor. */
  | { outcome: "none"; after: string }
  | { outcome: "more" }
  | { outcome: "unknown" };

export interface GroupFacts {
  name: string;
  /** Cursor of the last event that was given to a consumer. */
  after: string;
  /** Events that nobody was given yet, those that the group does not want included. */
  lag: number;
  /** Events that a consumer has in hand. */
  pending: number;
  consumers: { name: string; pending: number; idleMs: number }[];
  /** Events that were given up. */
  dead: number;
}

export interface DeadEvent {
  cursor: string;
  /** Null for one of a newer version. */
  event: FleetEvent | null;
  deliveries: number;
}

export interface TakeOptions {
  consumer: string;
  /** Cursor of the event that the consumer is done with. */
  done: string;
  claimAfterMs: number;
  attempts: number;
  filter: GroupFilter;
}

export interface EventGroupStore {
  /** Makes the group, unless it is there, to begin after a cursor. */
  open(group: string, after: string): Promise<boolean>;
  take(group: string, options: TakeOptions): Promise<Taken>;
  skip(group: string, gap: { after: string; oldest: string }): Promise<void>;
  /** Tells that the consumer still works on it; false when it is another's by now. */
  keep(group: string, consumer: string, cursor: string): Promise<boolean>;
  /** Its consumer failed. `dead` when it had `attempts`. */
  fail(group: string, consumer: string, cursor: string, attempts: number): Promise<"again" | "dead" | "gone">;
  leave(group: string, consumer: string, done: string): Promise<void>;
  list(): Promise<GroupFacts[]>;
  dead(group: string): Promise<DeadEvent[]>;
  /** False: there was none. */
  remove(group: string): Promise<boolean>;
  /** Forgets groups of which no consumer has asked for an event for so long; their names. */
  forgetUnused(afterMs: number): Promise<string[]>;
}

const Flat = z.array(z.union([z.string(), z.number(), z.null()]));
const DeadJson = z.object({ cursor: z.string(), fields: z.array(z.string()), deliveries: z.number() });

/** `request` asks Redis in the caller's way: with a deadline, or through any outage. */
export function createEventGroupStore(
  request: <T>(run: (redis: RedisConnection) => Promise<T>) => Promise<T>,
  keys: Keys,
): EventGroupStore {
  const run = (script: Script, group: string, ...args: (string | number)[]) =>
    request((redis) =>
      runScript(redis, script, [keys.events, keys.deadEvents(group), keys.groupUses], [group, ...args]),
    );
  return {
    open: async (group, after) => (await run(OPEN, group, checkCursor(after))) === 1,

    async take(group, { consumer, done, claimAfterMs, attempts, filter }) {
      const { team = "", sandbox = "", types = [] } = filter;
      return toTaken(await run(TAKE, group, consumer, done, claimAfterMs, attempts, team, sandbox, ...types));
    },

    async skip(group, { after, oldest }) {
      await run(SKIP, group, after, oldest);
    },

    async keep(group, consumer, cursor) {
      const [outcome] = z.array(z.unknown()).parse(await run(HOLD, group, consumer, cursor, 0));
      return outcome === "again";
    },

    async fail(group, consumer, cursor, attempts) {
      const [outcome] = z.array(z.unknown()).parse(await run(HOLD, group, consumer, cursor, attempts));
      return outcome === "again" || outcome === "dead" ? outcome : "gone";
    },

    async leave(group, consumer, done) {
      await run(LEAVE, group, consumer, done);
    },

    list: () => request((redis) => listGroups(redis, keys)),

    async dead(group) {
      const texts = await request((redis) => redis.lrange(keys.deadEvents(group), 0, -1));
      return texts.map((text) => {
        const { cursor, fields, deliveries } = DeadJson.parse(JSON.parse(text));
        return { cursor, event: toEvent(cursor, fields), deliveries };
      });
    },

    remove: async (group) => (await run(REMOVE, group)) === 1,

    async forgetUnused(afterMs) {
      const all = [keys.events, keys.deadEvents(""), keys.groupUses];
      const names = await request((redis) => runScript(redis, FORGET, all, [afterMs, keys.deadEvents("")]));
      return z.array(z.string()).parse(names);
    },
  };
}

async function listGroups(redis: RedisConnection, keys: Keys): Promise<GroupFacts[]> {
  if ((await redis.exists(keys.events)) === 0) return [];
  const [newest, groups] = await Promise.all([newestCursor(redis, keys), redis.xinfo("GROUPS", keys.events)]);
  return Promise.all(
    toFactsList(groups).map(async (group) => {
      const name = String(group["name"]);
      const after = String(group["last-delivered-id"]);
      const consumers = toFactsList(await redis.xinfo("CONSUMERS", keys.events, name));
      return {
        name,
        after,
        lag: Math.max(0, numberOf(newest) - numberOf(after)),
        pending: Number(group["pending"]),
        consumers: consumers.map((one) => ({
          name: String(one["name"]),
          pending: Number(one["pending"]),
          idleMs: Number(one["idle"]),
        })),
        dead: await redis.llen(keys.deadEvents(name)),
      };
    }),
  );
}

const toFactsList = (reply: unknown): Record<string, unknown>[] => z.array(Flat).parse(reply).map(toFacts);

function toFacts(flat: readonly (string | number | null)[]): Record<string, unknown> {
  const facts: Record<string, unknown> = {};
  for (let at = 0; at + 1 < flat.length; at += 2) facts[String(flat[at])] = flat[at + 1];
  return facts;
}

const TakenReply = z.tuple([z.string()], z.unknown());

function toTaken(reply: unknown): Taken {
  const [outcome, first, second, third] = TakenReply.parse(reply);
  const cursor = String(first);
  switch (outcome) {
    case "event":
    case "dead": {
      const event = toEvent(cursor, z.array(z.string()).parse(second));
      return { outcome, cursor, event, deliveries: Number(third) };
    }
    case "lost":
      return { outcome, cursor };
    case "gap":
      return { outcome, after: cursor, oldest: String(second) };
    case "none":
      return { outcome, after: cursor };
    case "more":
      return { outcome };
    default:
      return { outcome: "unknown" };
  }
}

export const groupUnknown = (group: string): FleetError =>
  new FleetError("group_not_found", `there is no consumer group ${group} (any more)`, { facts: { group } });
