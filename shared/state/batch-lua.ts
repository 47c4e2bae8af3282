/** Counts, policies and ends of batches in Lua, for the steps that change their items. */
export const BATCH_LUA = `
-- A batch counts its items by status: what changes an operation's status moves its item in the same step.
local function batchKey(id) return P..':batch:'..id end
local function batchPart(id, part) return P..':batch-'..part..':'..id end
local function applyOperation(key, change)
  local before, batch = unpack(redis.call('HMGET', key, 'status', 'batch'))
  apply(key, change.set, change.unset)
  if not batch then return end
  local after = redis.call('HGET', key, 'status')
  if after == before or redis.call('EXISTS', batchKey(batch)) == 0 then return end
  redis.call('HINCRBY', batchKey(batch), before, -1)
  redis.call('HINCRBY', batchKey(batch), after, 1)
end
-- Over once nothing is added any more, every item has ended and all that is to be undone is undone.
local function finishBatch(id, now, ttl)
  local key = batchKey(id)
  local open, ended, queued, running, stop, undoAt = unpack(redis.call('HMGET', key, 'open', 'endedAt', 'queued', 'running', 'stop', 'undoAt'))
  if open ~= '0' or ended or tonumber(queued) + tonumber(running) > 0 then return end
  local items = redis.call('LLEN', batchPart(id, 'ends'))
  if stop == 'undo' and (tonumber(undoAt) < items or redis.call('EXISTS', batchPart(id, 'undo')) == 1) then return end
  redis.call('HSET', key, 'endedAt', now)
  redis.call('PUBLISH', P..':wake', 'batch '..id)
  redis.call('SREM', P..':batches-stopping', id)
  redis.call('EXPIRE', key, ttl)
  for _, part in ipairs({'items', 'ends', 'rejected'}) do redis.call('EXPIRE', batchPart(id, part), ttl) end
  local size = 1024 + items * 256
  redis.call('RPUSH', P..':ended', 'batch/'..id..' '..size)
  redis.call('INCRBY', P..':ended-bytes', size)
end
local STOPS = {stop = 1, cancel = 2, undo = 3}
-- Nothing more is added nor begins from this step on; workers end what waits, and for more than a stop what runs.
local function stopBatch(id, how, reason)
  local key = batchKey(id)
  local before, ended = unpack(redis.call('HMGET', key, 'stop', 'endedAt'))
  if ended then return 'ended' end
  if before and STOPS[before] >= STOPS[how] then return 'ok' end
  redis.call('HSET', key, 'stop', how, 'open', 0)
  redis.call('HSETNX', key, 'reason', reason)
  redis.call('ZREM', P..':batches-open', id)
  redis.call('SADD', P..':batches-stopping', id)
  redis.call('PUBLISH', P..':wake', 'batch '..id)
  return 'ok'
end
-- detail: why it did not succeed, or the sandbox of one that did.
local function endItem(id, item, operation, status, detail)
  local key = batchKey(id)
  redis.call('RPUSH', batchPart(id, 'ends'), item..' '..operation..' '..status..' '..detail)
  if status ~= 'failed' then return end
  redis.call('HINCRBY', key, 'code:'..detail, 1)
  local policy = redis.call('HGET', key, 'policy')
  if policy ~= 'keep' then
    local why = {code = 'canceled', message = 'item '..item..' of its batch failed ('..detail..')', facts = {batch = id}}
    stopBatch(id, policy, cjson.encode(why))
  end
end
`;
