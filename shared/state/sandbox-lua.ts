/** What follows from a change of a sandbox in Lua: its TTL, its idleness, its pool, its stamp and its indexes. */
import { luaSet } from "./base-lua.ts";
import type { SandboxRecord } from "./records.ts";

const STAMPED = [
  "team",
  "instanceId",
  "metadata",
  "ttlSeconds",
  "ttlAction",
  "ttlExtendOnUse",
  "expiresAt",
  "idleSeconds",
  "idleAction",
  "wakeOnHttp",
] as const satisfies (keyof SandboxRecord)[];

export const SANDBOX_LUA = `
local function setting(name) return tonumber(redis.call('HGET', P..':limits', name) or nil) end
-- \`at\` nil: never. A warning comes some time before it, and never in the first half of what is left.
local function setEnd(id, at, byUse)
  -- Uses move it all the time: a rebuild gives such a sandbox all of its TTL again.
  if not byUse then redis.call('SADD', P..':restamp', id) end
  if not at then
    redis.call('HDEL', sbxKey(id), 'expiresAt')
    redis.call('ZREM', P..':expiries', id)
    redis.call('ZREM', P..':expiring', id)
    return
  end
  local text = string.format('%.0f', at)
  redis.call('HSET', sbxKey(id), 'expiresAt', text)
  redis.call('ZADD', P..':expiries', text, id)
  local before = math.min((setting('ttlWarningSeconds') or 0) * 1000, (at - nowMs()) / 2)
  if before > 0 then redis.call('ZADD', P..':expiring', string.format('%.0f', at - before), id)
  else redis.call('ZREM', P..':expiring', id) end
end
local function endOf(id) return tonumber(redis.call('HGET', sbxKey(id), 'expiresAt') or nil) end
-- Moves an end that is set, and only to a later time. → the end as it is now, and whether it was moved
local function extendEnd(id, at, byUse)
  local known = endOf(id)
  if not known or at <= known then return known, false end
  setEnd(id, at, byUse)
  return at, true
end
-- A use at some time, where its TTL counts from the last one.
local function extendByUse(id, at)
  local seconds, extends = unpack(redis.call('HMGET', sbxKey(id), 'ttlSeconds', 'ttlExtendOnUse'))
  if seconds and extends == 'true' then extendEnd(id, at + math.min(seconds, setting('ttlMaxSeconds') or seconds) * 1000, true) end
end
-- Its TTL begins as it comes up, for the first time or after the TTL's own stop or pause.
local function startTtl(id, op)
  local seconds, at = unpack(redis.call('HMGET', sbxKey(id), 'ttlSeconds', 'expiresAt'))
  if at then return extendByUse(id, nowMs()) end
  if not seconds and redis.call('HGET', opKey(op), 'kind') == 'provision' then
    seconds = setting('ttlDefaultSeconds')
    if seconds then redis.call('HSET', sbxKey(id), 'ttlSeconds', seconds) end
  end
  -- The maximum may have been lowered since it was asked for.
  if seconds then setEnd(id, nowMs() + math.min(seconds, setting('ttlMaxSeconds') or seconds) * 1000) end
end
-- Its last use is now, which matters only where it may not be idle for ever, or its TTL counts from there.
local function use(sandbox, now)
  local idles, extends = unpack(redis.call('HMGET', sbxKey(sandbox), 'idleSeconds', 'ttlExtendOnUse'))
  if idles then redis.call('HSET', P..':uses', sandbox, now) end
  if extends == 'true' then extendByUse(sandbox, nowMs()) end
end
-- Whether a sandbox is idle is looked at while it runs.
local function watchIdle(sandbox, state, seconds, now)
  if state == 'running' and seconds then
    use(sandbox, now)
    redis.call('ZADD', P..':idle', now + seconds * 1000, sandbox)
  else
    redis.call('ZREM', P..':idle', sandbox)
    redis.call('HDEL', P..':uses', sandbox)
  end
end
-- How long it may be idle where its provision has not said so; null: for ever.
local function defaultIdle(id, op)
  local seconds = setting('idleDefaultSeconds')
  local kind, input = unpack(redis.call('HMGET', opKey(op), 'kind', 'input'))
  if not seconds or kind ~= 'provision' or cjson.decode(input).idleSeconds == cjson.null then return nil end
  redis.call('HSET', sbxKey(id), 'idleSeconds', seconds)
  redis.call('SADD', P..':restamp', id)
  return seconds
end
-- What the stamp on its container tells, and no state or place does: see \`keys.restamp\`. Services are fields of their own.
local STAMPED = ${luaSet(STAMPED)}
local function isStamped(change)
  for i = 1, #change.set, 2 do if STAMPED[change.set[i]] then return true end end
  for _, name in ipairs(change.unset) do if STAMPED[name] then return true end end
  return false
end
-- A member of a pool is ready from the moment of its making, which has looked; for this server, see pools.ts.
local function watchPool(id, before, state, now)
  if before ~= 'warm' and state ~= 'warm' then return end
  local key = sbxKey(id)
  local pool, since = unpack(redis.call('HMGET', key, 'pool', 'stateAt'))
  if state == 'warm' then
    redis.call('HSET', key, 'warmOn', serverId())
    return redis.call('ZADD', poolReady(pool), string.format('%.0f', nowMs()), id)
  end
  redis.call('ZREM', poolReady(pool), id)
  redis.call('HINCRBY', poolCounts(pool), 'idleMs', math.max(0, now - since))
end
-- The change of a sandbox's state, with its event and, at its end, its leaving of the indexes.
local function setSandbox(id, change, now, op, ttl)
  local key = sbxKey(id)
  if redis.call('EXISTS', key) == 0 then return end
  local before, had = unpack(redis.call('HMGET', key, 'state', 'idleSeconds'))
  apply(key, change.set, change.unset)
  if isStamped(change) then redis.call('SADD', P..':restamp', id) end
  local state, team, node, vmid, has = unpack(redis.call('HMGET', key, 'state', 'team', 'node', 'vmid', 'idleSeconds'))
  if state == 'running' and before ~= state then
    startTtl(id, op)
    has = has or defaultIdle(id, op)
  end
  if state ~= before or has ~= had then watchIdle(id, state, has, now) end
  if state ~= before then
    watchPool(id, before, state, now)
    redis.call('HSET', key, 'stateAt', now)
    emit('sandbox.changed', now, op, id, team, cjson.encode({state = state, before = before, node = node or nil, vmid = vmid and tonumber(vmid) or nil}))
    if GONE[state] then
      redis.call('HSET', key, 'endedAt', now)
      redis.call('ZREM', P..':sandboxes', id)
      redis.call('ZREM', P..':team:'..team, id)
      redis.call('ZREM', P..':expiries', id)
      redis.call('SREM', P..':restamp', id)
      redis.call('SREM', P..':restarts', id)
      redis.call('ZREM', P..':halted', id)
      redis.call('ZREM', P..':expiring', id)
      local instance = redis.call('HGET', key, 'instanceId')
      if instance and redis.call('HGET', P..':instances', instance) == id then redis.call('HDEL', P..':instances', instance) end
      redis.call('DEL', P..':secret:'..id, P..':users:'..id)
      redis.call('EXPIRE', key, ttl)
    end
  end
end
`;
