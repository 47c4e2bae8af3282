/** Fairness between teams in Lua: turns in `place`, and the lines of those that have none. */
export const TURNS_LUA = `
-- Fairness: of each team one operation a lane has its turn, and with it a job in \`place\`, which are served first come,
-- first served. The others have none; they stand in their team's line by acceptance.
local function lineOf(lane, team) return P..':line:'..lane..':'..team end
local function turnsOf(lane) return P..':turns:'..lane end
local function giveTurn(lane, team, id)
  redis.call('HSET', turnsOf(lane), team, id)
  if lane == 'batch' then redis.call('HSET', opKey(id), 'givesWay', math.max(1, redis.call('HLEN', turnsOf('interactive')))) end
end
-- Interactive work goes before that of batches, but only so often that no team goes without a turn: who has given way
-- often enough is next. Called for the one that has had its turn.
local function giveWay(id, out)
  local lane, team = unpack(redis.call('HMGET', opKey(id), 'lane', 'team'))
  if lane ~= 'interactive' then return out end
  local turns = redis.call('HGETALL', turnsOf('batch'))
  for i = 1, #turns, 2 do
    local key = opKey(turns[i + 1])
    if turns[i] ~= team and redis.call('EXISTS', key) == 1 and redis.call('HINCRBY', key, 'givesWay', -1) <= 0 then
      out[#out+1] = turns[i + 1]
    end
  end
  return out
end
local function hasTurn(id)
  local lane, team = unpack(redis.call('HMGET', opKey(id), 'lane', 'team'))
  return redis.call('HGET', turnsOf(lane), team) == id
end
-- Whether jobs of its priority are ready.
local function othersWait(key)
  local score = redis.call('HGET', key, 'priority') * 0x100000000
  return redis.call('ZCOUNT', P..':place:prioritized', score, score + 0xffffffff) > 0
end
local EARLIER = 'earlier provisions of its team'
-- Its place in line; nil: it has its turn now.
local function lineUp(id, lane, team, order)
  local holder = redis.call('HGET', turnsOf(lane), team)
  if not holder then giveTurn(lane, team, id) end
  if not holder or holder == id then return nil end
  order = order or redis.call('INCR', P..':order')
  redis.call('ZADD', lineOf(lane, team), order, id)
  return order
end
-- True: it has its turn now.
local function standInLine(id)
  local key = opKey(id)
  local order = lineUp(id, unpack(redis.call('HMGET', key, 'lane', 'team', 'order')))
  if order then redis.call('HSET', key, 'order', order, 'parked', 1, 'waitingFor', EARLIER) end
  return not order
end
local function passTurn(lane, team, out)
  while true do
    local id = redis.call('ZPOPMIN', lineOf(lane, team))[1]
    if not id then return redis.call('HDEL', turnsOf(lane), team) end
    local key = opKey(id)
    if redis.call('HGET', key, 'parked') == '1' then
      giveTurn(lane, team, id)
      redis.call('HSET', key, 'parked', 0)
      redis.call('HDEL', key, 'waitingFor')
      out[#out+1] = id
      return
    end
  end
end
-- Placed, stepping aside or ended: the next of its team has its turn.
local function leaveLine(id, out)
  local lane, team = unpack(redis.call('HMGET', opKey(id), 'lane', 'team'))
  if not lane then return out end
  redis.call('ZREM', lineOf(lane, team), id)
  if redis.call('HGET', turnsOf(lane), team) == id then passTurn(lane, team, out) end
  return out
end
`;
