/** The Lua behind batches, apart from what the steps of their operations do (`prelude.ts`). ARGV[1] is the prefix, as there. */
import { withPrelude } from "./prelude.ts";

/** ARGV: id, team, policy, size or '', now, trace or '' → `opened`, `existing`, `conflict` or `taken`. */
export const OPEN_BATCH = withPrelude(`
local id, team, policy, size, now = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local key = batchKey(id)
local owner, known, items, open = unpack(redis.call('HMGET', key, 'team', 'policy', 'size', 'open'))
if owner then
  if owner ~= team then return 'taken' end
  if known ~= policy or (items or '') ~= size then return 'conflict' end
  if open == '1' then redis.call('ZADD', P..':batches-open', now, id) end
  return 'existing'
end
redis.call('HSET', key, 'id', id, 'team', team, 'policy', policy, 'createdAt', now, 'open', 1,
  'queued', 0, 'running', 0, 'succeeded', 0, 'failed', 0, 'canceled', 0, 'undone', 0, 'undoFailed', 0, 'undoAt', 0)
if size ~= '' then redis.call('HSET', key, 'size', size) end
if ARGV[7] ~= '' then redis.call('HSET', key, 'trace', ARGV[7]) end
redis.call('ZADD', P..':batches', now, id)
redis.call('ZADD', P..':batches-open', now, id)
-- The index keeps no more than is kept of them.
for _ = 1, 20 do
  local oldest = redis.call('ZRANGE', P..':batches', 0, 0)[1]
  if redis.call('EXISTS', batchKey(oldest)) == 1 then break end
  redis.call('ZREM', P..':batches', oldest)
end
return 'opened'
`);

/** Nothing more will be added. ARGV: id, now, ttl. */
export const CLOSE_BATCH = withPrelude(`
local id = ARGV[2]
if redis.call('HGET', batchKey(id), 'open') ~= '1' then return 0 end
redis.call('HSET', batchKey(id), 'open', 0)
redis.call('ZREM', P..':batches-open', id)
finishBatch(id, ARGV[3], ARGV[4])
return 1
`);

/** An item that became no operation. ARGV: batch, index, hash, error JSON, code, now → `ok`, `known`, `conflict`, `stopped` or `unknown`. */
export const REJECT_ITEM = withPrelude(`
local id, index, hash, code = ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local open, stop = unpack(redis.call('HMGET', batchKey(id), 'open', 'stop'))
if not open then return 'unknown' end
local known = redis.call('HGET', batchPart(id, 'items'), index)
if known then return known == '!'..hash and 'known' or 'conflict' end
if stop then return 'stopped' end
if open == '0' then return 'conflict' end
redis.call('HSET', batchPart(id, 'items'), index, '!'..hash)
redis.call('HSET', batchPart(id, 'rejected'), index, ARGV[5])
redis.call('HINCRBY', batchKey(id), 'failed', 1)
redis.call('ZADD', P..':batches-open', ARGV[7], id)
endItem(id, index, '-', 'failed', code)
return 'ok'
`);

/** ARGV: id, how, reason JSON, team scope or '', now, ttl → `ok`, `ended` or `unknown`. */
export const STOP_BATCH = withPrelude(`
local id, scope = ARGV[2], ARGV[5]
local team = redis.call('HGET', batchKey(id), 'team')
if not team or (scope ~= '' and scope ~= team) then return 'unknown' end
local outcome = stopBatch(id, ARGV[3], ARGV[4])
finishBatch(id, ARGV[6], ARGV[7])
return outcome
`);

/**
 * Asks items of a stopped batch to end. ARGV: batch, operation… → those that wait, to be ended without a run.
 * Not by \`aborting\` and a message each: thousands may wait.
 */
export const ABORT_ITEMS = withPrelude(`
local stop, reason = unpack(redis.call('HMGET', batchKey(ARGV[2]), 'stop', 'reason'))
local waiting = {}
if not stop then return waiting end
for i = 3, #ARGV do
  local id = ARGV[i]
  local status = redis.call('HGET', opKey(id), 'status')
  if status == 'queued' then
    redis.call('HSETNX', opKey(id), 'abort', reason)
    waiting[#waiting+1] = id
  elseif status == 'running' and stop ~= 'stop' and redis.call('HSETNX', opKey(id), 'abort', reason) == 1 then
    redis.call('SADD', P..':aborting', id)
    redis.call('PUBLISH', P..':wake', 'abort '..id)
  end
end
return waiting
`);

/** Notes the next sandboxes that an undo has to destroy: those that the batch's own items made. ARGV: batch → how many items it looked at. */
export const NOTE_UNDO = withPrelude(`
local id = ARGV[2]
local at = tonumber(redis.call('HGET', batchKey(id), 'undoAt'))
if not at then return 0 end
local page = redis.call('LRANGE', batchPart(id, 'ends'), at, at + 199)
for _, entry in ipairs(page) do
  local operation, status, sandbox = string.match(entry, '^%d+ (%S+) (%S+) (%S+)$')
  if status == 'succeeded' then
    local maker, state = unpack(redis.call('HMGET', sbxKey(sandbox), 'operation', 'state'))
    if maker == operation and not GONE[state] then redis.call('ZADD', batchPart(id, 'undo'), 0, sandbox) end
  end
end
redis.call('HINCRBY', batchKey(id), 'undoAt', #page)
return #page
`);

/** ARGV: batch, now, ttl, what became of it (\`undone\` or \`undoFailed\`), sandbox… */
export const COUNT_UNDONE = withPrelude(`
local id = ARGV[2]
for i = 6, #ARGV do
  if redis.call('ZREM', batchPart(id, 'undo'), ARGV[i]) == 1 then redis.call('HINCRBY', batchKey(id), ARGV[5], 1) end
end
finishBatch(id, ARGV[3], ARGV[4])
return 1
`);
