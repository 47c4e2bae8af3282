/** Lua that all steps on operations and sandboxes build on: keys, writes that are collected, the clock, events. ARGV[1] is the prefix. */
import { POOL_TEAM } from "../ids.ts";
import { GONE_STATES, PROVISIONAL_STATES } from "./records.ts";

export const luaList = (names: readonly string[]) => names.map((name) => `'${name}'`).join(",");
export const luaSet = (names: readonly string[]) => `{${names.map((name) => `['${name}']=true`).join(",")}}`;

export const BASE_LUA = `
local P = ARGV[1]
local PROVISIONAL = ${luaSet(PROVISIONAL_STATES)}
local GONE = ${luaSet(GONE_STATES)}
local ENDED = ${luaSet(["succeeded", "failed", "canceled"])}
local EVENTS_KEPT = 100000
local POOL_TEAM = '${POOL_TEAM}'
local function opKey(id) return P..':op:'..id end
local function outputKey(id) return P..':output:'..id end
local function sbxKey(id) return P..':sbx:'..id end
-- Writes that nothing in the step reads are collected, since a call costs more than what it does: \`flush\` makes one of those
-- to the same key.
local later = {ZADD = {}, SADD = {}, HSET = {}}
local function add(command, key, ...)
  local words = later[command][key]
  if not words then
    words = {command, key}
    later[command][key] = words
  end
  for i = 1, select('#', ...) do words[#words+1] = (select(i, ...)) end
end
local function flush()
  for _, keys in pairs(later) do
    for key, words in pairs(keys) do
      redis.call(unpack(words))
      keys[key] = nil
    end
  end
end
-- Ends of sandboxes, and when members of pools were seen, are told by this server's clock alone: those of others differ.
local function nowMs()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- The server by its start: one that was started anew, or another master, may lack the last writes of the one before.
local function serverId() return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or 'one' end
local function poolReady(template) return P..':pool-ready:'..template end
local function poolCounts(template) return P..':pool-counts:'..template end
-- An event's id ends in its number, so whoever reads on can tell when one before it is gone, however it went.
local emittedMs, emitted
local function emit(type, now, op, sandbox, team, data)
  local stream = P..':events'
  local function add(id)
    return redis.pcall('XADD', stream, 'MAXLEN', '~', EVENTS_KEPT, id,
      'type', type, 'at', now, 'operation', op or '', 'sandbox', sandbox or '', 'team', team or '', 'data', data or '{}')
  end
  if not emitted then
    local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    local ms, n = string.match(newest and newest[1] or '0-0', '^(%d+)-(%d+)$')
    emittedMs, emitted = math.max(ms, nowMs()), n
  end
  emitted = emitted + 1
  local added = add(string.format('%.0f-%.0f', emittedMs, emitted))
  if added.err then -- emptied by hand: Redis still knows its last id, and takes no lower one
    add('*')
    emitted = nil
  end
end
local function apply(key, set, unset)
  if #set > 0 then redis.call('HSET', key, unpack(set)) end
  if #unset > 0 then redis.call('HDEL', key, unpack(unset)) end
end
`;
