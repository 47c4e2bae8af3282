/**
 * Quotas in Lua, for the scripts that accept and end operations: they build on the functions of `prelude.ts`.
 * What a team uses is read from sets of what exists, so nothing can drift; its rate from counts by the second.
 */
import { QUOTA_CLASSES, QUOTA_NEEDS } from "./quota-names.ts";

const needs = QUOTA_CLASSES.map((name) => `${name}={${QUOTA_NEEDS[name].map((one) => `'${one}'`).join(",")}}`);

export const QUOTA_LUA = `
local CLASSES = {${QUOTA_CLASSES.map((name) => `'${name}'`).join(",")}}
local NEEDS = {${needs.join(",")}}
local ADMITTED_AT_ONCE = 100
local function quotaLine(class, team) return P..':quota-line:'..class..':'..team end
local function flight(class, team) return P..':flight:'..class..':'..team end
-- The team's own limits over those of all teams; nil where there are none at all.
local function limitsOf(team)
  local all, own = unpack(redis.call('HMGET', P..':quotas', '*', team))
  if not all and not own then return nil end
  local limits = {}
  for _, json in ipairs({all or '{}', own or '{}'}) do
    for name, limit in pairs(cjson.decode(json)) do limits[name] = tonumber(limit) end
  end
  return limits
end
-- The server's clock: producers' may differ. A second is forgotten when all of it is a minute old.
local function rateOf(team, limit)
  local key = P..':rate:'..team
  local time = redis.call('TIME')
  local now, ms = tonumber(time[1]), math.floor(tonumber(time[2]) / 1000)
  local counts, seconds, used = redis.call('HGETALL', key), {}, 0
  for i = 1, #counts, 2 do
    local second, count = tonumber(counts[i]), tonumber(counts[i + 1])
    if second < now - 60 then redis.call('HDEL', key, counts[i])
    else
      used = used + count
      seconds[#seconds + 1] = {second, count}
    end
  end
  if not limit or used < limit or limit == 0 then return used end
  table.sort(seconds, function(a, b) return a[1] < b[1] end)
  local left = used
  for _, one in ipairs(seconds) do
    left = left - one[2]
    if left < limit then return used, math.max(0, (one[1] + 61 - now) * 1000 - ms) end
  end
end
local function usedOf(team, quota, limit)
  if quota == 'rate' then return rateOf(team, limit) end
  -- Those in the making are among them, but not those that wait for a quota.
  if quota == 'sandboxes' then
    return redis.call('ZCARD', P..':team:'..team) - redis.call('ZCARD', quotaLine('provisions', team))
  end
  return redis.call('SCARD', flight(quota, team))
end
-- The first quota that has no room for one more of a class, with its numbers.
local function shortage(team, class, limits, but)
  for _, quota in ipairs(NEEDS[class]) do
    local limit = limits[quota]
    if limit and quota ~= but then
      local used, retryAfterMs = usedOf(team, quota, limit)
      if used >= limit then return {quota = quota, limit = limit, used = used, retryAfterMs = retryAfterMs} end
    end
  end
  return nil
end
-- What stands in the way of a new one: a full quota, or others of its team that came first.
local function hindrance(team, class, limits)
  local short = shortage(team, class, limits)
  if redis.call('SISMEMBER', P..':quota-waiting', team) == 0 then return short end
  local waiting = redis.call('ZCARD', quotaLine(class, team))
  local first = nil
  if waiting > 0 then
    for _, quota in ipairs(NEEDS[class]) do first = first or limits[quota] and quota end
  elseif limits.rate and not short then
    -- The rate is the one quota that classes share.
    for _, other in ipairs(CLASSES) do
      local ahead = redis.call('ZCARD', quotaLine(other, team))
      if ahead > 0 and not shortage(team, other, limits, 'rate') then first, waiting = 'rate', ahead end
    end
  end
  if not short and first then short = {quota = first, limit = limits[first], used = (usedOf(team, first))} end
  if short then short.waiting = waiting end
  return short
end
-- It is under way, and counts.
local function countIn(id, team, class, limits)
  redis.call('SADD', P..':teams', team)
  if class ~= 'others' then redis.call('SADD', flight(class, team), id) end
  if limits and limits.rate then
    redis.call('HINCRBY', P..':rate:'..team, redis.call('TIME')[1], 1)
    redis.call('EXPIRE', P..':rate:'..team, 120)
  end
end
local function uncount(id, team, class, waits)
  if waits ~= false then redis.call('ZREM', quotaLine(class, team), id) end
  redis.call('SREM', flight(class, team), id)
end
local function standInQuotaLine(id, team, class, short)
  redis.call('SADD', P..':teams', team)
  redis.call('SADD', P..':quota-waiting', team)
  redis.call('ZADD', quotaLine(class, team), redis.call('INCR', P..':order'), id)
  redis.call('HSET', opKey(id), 'quota', short.quota, 'parked', 1,
    'waitingFor', 'quota '..short.quota..' of team '..team..': '..short.used..' of '..short.limit)
end
-- Lets those go that now have room, first come, first served in each class; what else they wait for comes then. → out, how many
local function admit(team, out)
  if redis.call('SISMEMBER', P..':quota-waiting', team) == 0 then return out, 0 end
  local limits = limitsOf(team) or {}
  for admitted = 0, ADMITTED_AT_ONCE - 1 do
    local id, class, order, waits = nil, nil, nil, false
    for _, one in ipairs(CLASSES) do
      local head = redis.call('ZRANGE', quotaLine(one, team), 0, 0, 'WITHSCORES')
      if head[1] then
        waits = true
        if (not order or tonumber(head[2]) < order) and not shortage(team, one, limits) then
          id, class, order = head[1], one, tonumber(head[2])
        end
      end
    end
    if not waits then redis.call('SREM', P..':quota-waiting', team) end
    if not id then return out, admitted end
    redis.call('ZREM', quotaLine(class, team), id)
    local key = opKey(id)
    if redis.call('HEXISTS', key, 'quota') == 1 then
      countIn(id, team, class, limits)
      redis.call('HDEL', key, 'quota')
      if enter(id) then out[#out + 1] = id end
    end
  end
  return out, ADMITTED_AT_ONCE
end
`;
