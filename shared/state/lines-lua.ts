/** The lines of operations before their sandboxes in Lua: who waits, and who may go now. */
export const LINES_LUA = `
local function matches(one, list)
  for _, other in ipairs(list) do if one == other then return true end end
  return false
end
local function queueOf(route, sandbox)
  local node = redis.call('HGET', sbxKey(sandbox), 'node')
  if not node then return 'place' end
  return route..'-'..node
end
-- An operation that no quota holds back stands in line for its place or its sandbox; whether it may go at once.
local function enter(id)
  local key = opKey(id)
  local route, sandbox, source = unpack(redis.call('HMGET', key, 'route', 'sandbox', 'source'))
  local line, waits = source or sandbox, false
  redis.call('HSET', key, 'parked', 0, 'queue', queueOf(route, line))
  redis.call('HDEL', key, 'waitingFor')
  if route == 'place' then return standInLine(id) end
  if route == 'node' then waits = redis.call('LINDEX', P..':changes:'..line, 0) ~= id
  elseif PROVISIONAL[redis.call('HGET', sbxKey(sandbox), 'state')] then
    redis.call('RPUSH', P..':waiting:'..sandbox, id)
    waits = true
  end
  if waits then redis.call('HSET', key, 'parked', 1, 'waitingFor', 'an earlier operation of this sandbox') end
  return not waits
end
-- Lets parked operations of a sandbox go: the head of its changes, and all that waited for it to be up.
local function release(sandbox, out)
  local function go(id)
    local key = opKey(id)
    local parked, quota = unpack(redis.call('HMGET', key, 'parked', 'quota'))
    if parked ~= '1' or quota then return end
    local queue = queueOf(redis.call('HGET', key, 'route'), sandbox)
    redis.call('HSET', key, 'parked', 0, 'queue', queue)
    redis.call('HDEL', key, 'waitingFor')
    out[#out+1] = id
  end
  local head = redis.call('LINDEX', P..':changes:'..sandbox, 0)
  if head then go(head) end
  local state = redis.call('HGET', sbxKey(sandbox), 'state')
  if not state or not PROVISIONAL[state] then
    for _, id in ipairs(redis.call('LRANGE', P..':waiting:'..sandbox, 0, -1)) do go(id) end
    redis.call('DEL', P..':waiting:'..sandbox)
  end
  return out
end
-- The end of an operation's turn in the line of a sandbox.
local function leave(id, sandbox, out)
  redis.call('LREM', P..':changes:'..sandbox, 0, id)
  return release(sandbox, out)
end
`;
