/** What a run writes, until the end of its operation, and what asks it to end. Scripts as in `prelude.ts`. */
import { METADATA_LIMIT } from "../jobs/fields.ts";
import { luaList } from "./base-lua.ts";
import { SHELL_OUTPUT_SEC } from "./output.ts";
import { withPrelude } from "./prelude.ts";
import { ENDED_FIELDS } from "./records.ts";

/** Adds to a write what follows from the sandbox as it stands, so that two at once lose nothing; false: too much metadata. */
const PATCH = `
local function patch(w, id)
  local p = w.patch
  if not p or not id then return true end
  w.sandbox = w.sandbox or {set = {}, unset = {}}
  if p.metadata then
    local stored = redis.call('HGET', sbxKey(id), 'metadata')
    local merged, count = p.replace and {} or cjson.decode(stored or '{}'), 0
    for name, value in pairs(p.metadata) do merged[name] = value ~= cjson.null and value or nil end
    for _ in pairs(merged) do count = count + 1 end
    if count > ${METADATA_LIMIT} then return false end
    local set = w.sandbox.set
    set[#set+1] = 'metadata'
    set[#set+1] = cjson.encode(merged)
  end
  return true
end
-- Once it is sure to be written.
local function patchEnd(w, id)
  local p = w.patch
  if not p or not id then return end
  if p.endsIn == 'never' then setEnd(id, nil)
  elseif p.endsIn and p.extend then extendEnd(id, nowMs() + p.endsIn * 1000)
  elseif p.endsIn then setEnd(id, nowMs() + p.endsIn * 1000) end
  local at = p.settles and endOf(id)
  if at and at <= nowMs() and matches(redis.call('HGET', sbxKey(id), 'ttlAction'), p.settles) then setEnd(id, nil) end
end
-- The claim of a pool's member: its container, with all that is leased for it, becomes the sandbox's. False: it is not there
-- to be had any more. A write that is sent again after a lost reply finds it done.
local MOVED = {'node', 'vmid', 'hostname', 'address', 'hwaddr', 'leasedIp'}
local function mayTake(w, sandbox)
  if not w.member or redis.call('HGET', sbxKey(sandbox), 'member') == w.member then return true end
  return redis.call('HGET', sbxKey(w.member), 'state') == 'warm' and redis.call('LLEN', P..':changes:'..w.member) == 0
end
local function take(w, sandbox, now, op, ttl)
  if not w.member then return end
  local from, to = sbxKey(w.member), sbxKey(sandbox)
  local values, moved = redis.call('HMGET', from, unpack(MOVED)), {}
  for at, name in ipairs(MOVED) do
    if values[at] then
      redis.call('HSET', to, name, values[at])
      moved[name] = values[at]
    end
  end
  redis.call('HSET', to, 'member', w.member)
  redis.call('HSET', P..':vmids', moved.vmid, sandbox)
  if moved.address then redis.call('HSET', P..':addresses', moved.address, sandbox) end
  if moved.leasedIp then redis.call('HSET', P..':ips', moved.leasedIp, sandbox) end
  local reserved = P..':reserved:'..moved.node
  local amount = redis.call('HGET', reserved, w.member)
  if amount then redis.call('HSET', reserved, sandbox, amount) end
  redis.call('HDEL', reserved, w.member)
  local counts = poolCounts(redis.call('HGET', from, 'pool'))
  redis.call('HINCRBY', counts, 'hits', 1)
  redis.call('HINCRBY', counts, 'claimMs', math.max(0, now - redis.call('HGET', opKey(op), 'acceptedAt')))
  redis.call('HDEL', P..':pools-owned', sandbox)
  redis.call('SADD', P..':restamp', sandbox)
  setSandbox(w.member, {set = {'state', 'claimed', 'became', sandbox}, unset = MOVED}, now, op, ttl)
end
local function tell(w, id, op, now)
  if not (w.patch and w.patch.fields) then return end
  emit('sandbox.updated', now, op, id, redis.call('HGET', sbxKey(id), 'team'), cjson.encode({fields = w.patch.fields}))
end
`;

/**
 * ARGV: id, fence, write JSON, now, ttl, revision → [outcome, operation that has its turn now…] or outcome.
 * write: { operation, sandbox?: {set, unset}, patch?, also: command[], leavesLine?: true, holds: slot name[], member? }.
 */
export const WRITE = withPrelude(`${PATCH}
local id, fence, now, ttl = ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local w = cjson.decode(ARGV[4])
local key = opKey(id)
local sandbox = redis.call('HGET', key, 'sandbox')
-- A slot may be younger than the record's last write, and lost without it.
for _, name in ipairs(w.holds) do
  if redis.call('HEXISTS', P..':slot:'..name, id) == 0 then return 'rewound' end
end
if not mayTake(w, sandbox) then return 'taken' end
if not patch(w, sandbox) then return 'full' end
local refused = revise(key, fence, ARGV[7])
if refused then return refused end
take(w, sandbox, now, id, ttl)
local out = w.leavesLine and leaveLine(id, giveWay(id, {'ok'})) or {'ok'}
applyOperation(key, w.operation)
for _, command in ipairs(w.also) do redis.call(unpack(command)) end
patchEnd(w, sandbox)
if w.sandbox then setSandbox(sandbox, w.sandbox, now, id, ttl) end
tell(w, sandbox, id, now)
return out
`);

/** Of results that go out with the message of their end; who gets none reads the record. */
const TOLD_BYTES = 16_384;

/**
 * The end of an operation and its event, in one step → [outcome, released operation…].
 * ARGV as WRITE, with write.status, write.event and write.output (the rest of the live output) besides.
 */
export const END = withPrelude(`${PATCH}
local id, fence, now, ttl = ARGV[2], ARGV[3], ARGV[5], ARGV[6]
local w = cjson.decode(ARGV[4])
local key = opKey(id)
local sandbox, team, kind, class, idem, batch, item, source, listener, abort, route, quota, output = unpack(redis.call('HMGET', key,
  'sandbox', 'team', 'kind', 'class', 'idempotency', 'batch', 'item', 'source', 'listener', 'abort', 'route', 'quota', 'output'))
-- Who was told that it will be canceled is told the truth; a destroy that has begun goes on to its end.
if abort and w.status == 'succeeded' and kind ~= 'destroy' then return {'aborted', abort} end
if not mayTake(w, sandbox) then return {'taken'} end
if not patch(w, sandbox) then return {'full'} end
local refused = revise(key, fence, ARGV[7])
if refused then return {refused} end
take(w, sandbox, now, id, ttl)
local out = route == 'place' and leaveLine(id, {'ok'}) or {'ok'}
local set, unset, result = w.operation.set, w.operation.unset, 0
for i = 1, #set, 2 do if set[i] == 'result' then result = #set[i + 1] end end
set[#set+1], set[#set+2] = 'endedAt', now
unset[#unset+1], unset[#unset+2] = 'waitingFor', 'quota'
if batch then applyOperation(key, w.operation) else apply(key, set, unset) end
for _, command in ipairs(w.also) do redis.call(unpack(command)) end
patchEnd(w, sandbox)
if class then uncount(id, team, class, quota) end
if w.sandbox then setSandbox(sandbox, w.sandbox, now, id, ttl) end
if w.output then addOutput(id, fence, w.output, now) end
redis.call('ZREM', P..':open', id)
if abort then redis.call('SREM', P..':aborting', id) end
redis.call('DEL', P..':secret:'..id)
redis.call('EXPIRE', key, ttl)
if kind == 'shell' then redis.call('DEL', P..':shell-input:'..id) end
if kind == 'upload' or (kind == 'download' and w.status ~= 'succeeded') then dropContent(id)
elseif kind == 'download' then
  redis.call('EXPIRE', P..':content:'..id, ttl)
  redis.call('ZADD', P..':contents', now, id)
end
-- Results are kept within a byte bound as well: the oldest go first.
local told = result < ${TOLD_BYTES}
local size = result + redis.call('HSTRLEN', key, 'input') + 1024
if output or w.output then
  size = size + (redis.call('MEMORY', 'USAGE', outputKey(id)) or 0)
  -- What a terminal showed is for who watched it.
  redis.call('EXPIRE', outputKey(id), kind == 'shell' and math.min(ttl, ${SHELL_OUTPUT_SEC}) or ttl)
end
redis.call('RPUSH', P..':ended', id..' '..size)
local total = redis.call('INCRBY', P..':ended-bytes', size)
for _ = 1, 20 do
  local oldest = redis.call('LINDEX', P..':ended', 0)
  local old, bytes = string.match(oldest, '^(%S+) (%d+)$')
  local oldBatch = string.match(old, '^batch/(.*)$')
  local oldKey = oldBatch and batchKey(oldBatch) or opKey(old)
  if old == id or (total <= tonumber(w.keepBytes) and redis.call('EXISTS', oldKey) == 1) then break end
  redis.call('LPOP', P..':ended')
  redis.call('DEL', oldKey, outputKey(old))
  if oldBatch then for _, part in ipairs({'items', 'ends', 'rejected'}) do redis.call('DEL', batchPart(oldBatch, part)) end end
  total = redis.call('DECRBY', P..':ended-bytes', bytes)
end
if idem then redis.call('EXPIRE', idem, ttl) end
if route ~= 'exec' then redis.call('LREM', P..':changes:'..sandbox, 0, id) end
redis.call('LREM', P..':waiting:'..sandbox, 0, id)
if redis.call('SREM', P..':users:'..sandbox, id) == 1 then use(sandbox, now) end
local held = redis.call('SMEMBERS', P..':held:'..id)
if #held > 0 then
  for _, name in ipairs(held) do redis.call('HDEL', P..':slot:'..name, id) end
  redis.call('DEL', P..':held:'..id)
  redis.call('PUBLISH', P..':wake', 'ended '..id) -- who waits for a slot
end
if batch then
  w.event.batch, w.event.item = batch, tonumber(item)
  if redis.call('SREM', batchPart(batch, 'live'), id) == 1 then
    endItem(batch, item, id, w.status, w.event.code or sandbox)
    finishBatch(batch, now, ttl)
  end
end
tell(w, sandbox, id, now)
emit('operation.'..w.status, now, id, sandbox, team, cjson.encode(w.event))
if listener and told then redis.call('PUBLISH', P..':told:'..listener, cjson.encode(redis.call('HMGET', key, ${luaList(ENDED_FIELDS)}))) end
redis.call('PUBLISH', P..':ends', 'ended '..id..(batch and ' '..batch or ''))
-- A command was in nobody's way.
if route ~= 'exec' or w.sandbox then release(sandbox, out) end
if source then leave(id, source, out) end
return (admit(team, out))
`);

/** Leaves the line of the sandbox that it copied. ARGV: id, fence, revision → [outcome, released operation…]. */
export const LEAVE_SOURCE = withPrelude(`
local id, fence = ARGV[2], ARGV[3]
local key = opKey(id)
local source = redis.call('HGET', key, 'source')
local refused = revise(key, fence, ARGV[4])
if refused or not source then return {refused or 'ok'} end
redis.call('HDEL', key, 'source')
return leave(id, source, {'ok'})
`);

/** ARGV: id, error JSON, team scope or '' → outcome. */
export const ABORT = withPrelude(`
local id, abort, scope = ARGV[2], ARGV[3], ARGV[4]
local key = opKey(id)
local status, team = unpack(redis.call('HMGET', key, 'status', 'team'))
if not status or (scope ~= '' and scope ~= team) then return 'unknown' end
if ENDED[status] then return 'ended' end
redis.call('HSETNX', key, 'abort', abort)
redis.call('SADD', P..':aborting', id)
redis.call('PUBLISH', P..':wake', 'abort '..id)
return 'ok'
`);
