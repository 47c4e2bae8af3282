/**
 * The Lua behind operations and sandboxes: each script is one atomic step.
 * KEYS[1] is the key of open operations; ARGV[1] the prefix, from which the other keys are built (all in its hash tag).
 */

import { POOL_TEAM } from "../ids.ts";
import type { JobSpec } from "../jobs/define-job.ts";
import { METADATA_LIMIT } from "../jobs/fields.ts";
import { jobs } from "../jobs/index.ts";
import { defineScript } from "../redis/script.ts";
import { JOB_LUA } from "./job-lua.ts";
import { OUTPUT_KEPT_BYTES, OUTPUT_KEPT_ENTRIES, SHELL_OUTPUT_SEC } from "./output.ts";
import { QUOTA_LUA } from "./quota-lua.ts";
import { ENDED_FIELDS, GONE_STATES, PROVISIONAL_STATES, SANDBOX_STATES, type SandboxRecord } from "./records.ts";

const luaList = (names: readonly string[]) => names.map((name) => `'${name}'`).join(",");
const luaSet = (names: readonly string[]) => `{${names.map((name) => `['${name}']=true`).join(",")}}`;

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

const PRELUDE = `
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
  if seconds and extends == 'true' then extendEnd(id, at + seconds * 1000, true) end
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
      redis.call('ZREM', P..':expiring', id)
      local instance = redis.call('HGET', key, 'instanceId')
      if instance and redis.call('HGET', P..':instances', instance) == id then redis.call('HDEL', P..':instances', instance) end
      redis.call('DEL', P..':secret:'..id, P..':users:'..id)
      redis.call('EXPIRE', key, ttl)
    end
  end
end
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
-- The content of a transfer goes, and is not counted any more.
local function dropContent(id)
  local bytes = redis.call('HGET', P..':content-bytes', id)
  if not bytes then return end
  redis.call('UNLINK', P..':content:'..id)
  redis.call('ZREM', P..':contents', id)
  redis.call('HDEL', P..':content-bytes', id)
  redis.call('HINCRBY', P..':content-bytes', 'all', -tonumber(bytes))
end
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
-- A run names the revision of the record that it builds on: an older one has lost what the run wrote (Redis came back
-- with an earlier state).
local function refusal(holder, status, at, fence, revision)
  if not status then return 'unknown' end
  if ENDED[status] then return 'ended' end
  if holder ~= fence then return 'fenced' end
  if at ~= revision then return 'rewound' end
  return nil
end
local function mayWrite(key, fence, revision)
  local holder, status, at = unpack(redis.call('HMGET', key, 'fence', 'status', 'revision'))
  return refusal(holder, status, at, fence, revision)
end
-- One that is just one newer has had this very write, sent again after a lost reply.
local function isRepeated(key, fence, revision)
  local holder, at = unpack(redis.call('HMGET', key, 'fence', 'revision'))
  return holder == fence and at == tostring(revision + 1)
end
local function revise(key, fence, revision)
  local holder, status, at = unpack(redis.call('HMGET', key, 'fence', 'status', 'revision'))
  if holder == fence and at == tostring(revision + 1) then return 'ok' end
  local refused = refusal(holder, status, at, fence, revision)
  if not refused then redis.call('HINCRBY', key, 'revision', 1) end
  return refused
end
-- Live output, see output.ts. What is there already was sent again after a lost reply. Returns how many listen.
local function addOutput(id, fence, entries, now)
  local key, stream = opKey(id), outputKey(id)
  local run, at, writer = string.match(redis.call('HGET', key, 'output') or '', '^(%d+) (%d+) (.+)$')
  if writer ~= fence then
    redis.call('DEL', stream)
    run, at = math.max(tonumber(now), tonumber(run or 0) + 1), 0
  end
  run, at = string.format('%.0f', run), tonumber(at)
  for _, entry in ipairs(entries) do
    if entry[1] > at then
      at = entry[1]
      redis.call('XADD', stream, 'MAXLEN', '~', ${OUTPUT_KEPT_ENTRIES}, run..'-'..string.format('%.0f', at), unpack(entry, 2))
    end
  end
  if at > ${OUTPUT_KEPT_BYTES} then
    redis.call('XTRIM', stream, 'MINID', run..'-'..string.format('%.0f', at - ${OUTPUT_KEPT_BYTES}))
  end
  redis.call('HSET', key, 'output', run..' '..string.format('%.0f', at)..' '..fence)
  return redis.call('PUBLISH', stream, at)
end
`;

/** A script with the functions that they all share. */
export const withPrelude = (body: string) => defineScript(PRELUDE + body);

/** As above, for what accepts and ends operations. */
export const withQuotas = (body: string) => withPrelude(QUOTA_LUA + body);

/** Accepts a request in one step; `return`s as ACCEPT. */
const ACCEPT_ONE = `
local function reply(outcome, id)
  local sandbox, parked, queue, priority, team =
    unpack(redis.call('HMGET', opKey(id), 'sandbox', 'parked', 'queue', 'priority', 'team'))
  return {outcome, id, sandbox, parked, queue, priority, team}
end
local limitsByTeam = {}
-- In ACCEPT_ITEMS \`r\` is of all items of a group, and \`r.item\` of this one.
local function accept(r)
local key = opKey(r.id)
local known = r.item and r.item.known
-- The same request again: the connection broke before its reply came, and the client sent it once more.
if known == r.id or (not r.item and redis.call('EXISTS', key) == 1) then return reply('accepted', r.id) end
if r.item then
  local open, stop = r.item.open, r.item.stop
  if not open then return {'batch_not_found', r.id, r.sandbox} end
  if known then
    -- One that was refused has a hash only, one that has ended long ago only its id.
    local hash = string.match(known, '^!(.*)$') or redis.call('HGET', opKey(known), 'inputHash')
    if hash and not matches(hash, r.hashes) then return {'item_conflict', r.id, r.sandbox} end
    return {'item_known', r.id, r.sandbox}
  end
  if stop then return {'batch_stopped', r.id, r.sandbox} end
  if open == '0' then return {'item_conflict', r.id, r.sandbox} end
end
local idem = r.idempotency and P..':idem:'..r.team..':'..r.idempotency or nil
if idem then
  local known = redis.call('GET', idem)
  if known then
    local hash, sandbox, owner = unpack(redis.call('HMGET', opKey(known), 'inputHash', 'sandbox', 'team'))
    if hash and r.scope and r.scope ~= owner then return {'sandbox_not_found', r.id, r.sandbox} end
    if matches(hash, r.hashes) then return reply('existing', known) end
    if hash then return {'conflict', known, sandbox} end
  end
end
if r.kind == 'upload' and redis.call('EXISTS', P..':content:'..r.id) == 0 then return {'content_gone', r.id, r.sandbox} end
local most = r.ttl and setting('ttlMaxSeconds')
if most and (r.ttl == 'never' or r.ttl > most) then return {'ttl_too_long', r.id, r.sandbox, tostring(most), tostring(r.ttl)} end
local named = r.instance and redis.call('HGET', P..':instances', r.instance)
local owner, made, hash, state
if named then owner, made, hash, state = unpack(redis.call('HMGET', sbxKey(named), 'team', 'operation', 'inputHash', 'state')) end
if owner then
  if owner ~= r.team then return {'instance_taken', r.id, r.sandbox} end
  if state == 'destroying' then return {'instance_going', r.id, named} end
  if r.item or not matches(hash, r.hashes) then return {'instance_conflict', r.id, named} end
  -- The operation's own record may be gone long before the sandbox.
  return {'existing', made, named, '0', '', '0', owner}
end
local sk = sbxKey(r.sandbox)
-- Where a sandbox is that needs no wait for it to be up.
local home
-- The sandbox that it is about or copies decides whose it is.
local subject = r.source or #r.sandboxSet == 0 and r.sandbox
if subject then
  local team, state, node = unpack(redis.call('HMGET', sbxKey(subject), 'team', 'state', 'node'))
  if not team or (r.scope and r.scope ~= team) then return {'sandbox_not_found', r.id, subject} end
  if team == POOL_TEAM and not r.destroys then return {'in_pool', r.id, subject} end
  if GONE[state] and not r.destroys then return {'sandbox_gone', r.id, subject} end
  r.team = team
  if r.route == 'exec' and node and not PROVISIONAL[state] then home = node end
end
if r.class and limitsByTeam[r.team] == nil then limitsByTeam[r.team] = limitsOf(r.team) or false end
local limits = r.class and limitsByTeam[r.team] or nil
local short = limits and hindrance(r.team, r.class, limits)
if short and r.onQuota ~= 'wait' then
  short.team = r.team
  return {'quota_exceeded', r.id, r.sandbox, cjson.encode(short)}
end
if #r.sandboxSet > 0 then
  if r.instance then
    redis.call('HSET', P..':instances', r.instance, r.sandbox)
    redis.call('HSET', sk, 'inputHash', r.hashes[1])
  end
  redis.call('HSET', sk, 'id', r.sandbox, 'operation', r.id, 'team', r.team, unpack(r.sandboxSet))
  add('ZADD', P..':sandboxes', r.now, r.sandbox)
  add('ZADD', P..':team:'..r.team, r.now, r.sandbox)
end
if r.route ~= 'exec' then
  local changes = P..':changes:'..r.sandbox
  if r.destroys then
    for _, id in ipairs(redis.call('LRANGE', changes, 0, -1)) do
      -- An earlier destroy does what this one wants; it is waited for.
      if redis.call('HGET', opKey(id), 'kind') ~= 'destroy' then
        redis.call('HSETNX', opKey(id), 'abort', '{"code":"canceled","message":"the sandbox is being destroyed","facts":{}}')
        redis.call('SADD', P..':aborting', id)
        redis.call('PUBLISH', P..':wake', 'abort '..id)
      end
    end
  end
  redis.call('RPUSH', changes, r.id)
  if r.source then redis.call('RPUSH', P..':changes:'..r.source, r.id) end
end
local lane = r.route == 'place' and r.lane or nil
local pool = r.pool and redis.call('HGET', P..':pools', r.pool)
local queue = lane and 'place' or home and r.route..'-'..home or queueOf(r.route, r.source or r.sandbox)
-- What a pool serves needs no node's slot, so it stands in nobody's line. Batch work leaves the least that a pool keeps.
if pool then
  redis.call('HINCRBY', poolCounts(r.pool), 'asked', 1)
  if not short and redis.call('ZCOUNT', poolReady(r.pool), '(0', '+inf') > (r.batch and cjson.decode(pool).min or 0) then queue = 'warm' end
end
local about, batch = {kind = r.kind}, r.item and r.item.batch
if batch then
  about.batch, about.item = batch, r.item.index
  add('HSET', batchPart(batch, 'items'), r.item.index, r.id)
  add('SADD', batchPart(batch, 'live'), r.id)
end
local line = lane and queue == 'place' and not short and lineUp(r.id, lane, r.team) or nil
-- What items of a group share comes first, and is not copied for each.
local fields, count = r.operationSet, r.shared or #r.operationSet
r.shared = count
local function set(name, value)
  fields[count + 1], fields[count + 2] = name, value
  if value then count = count + 2 end
end
set('id', r.id)
set('sandbox', r.sandbox)
set('job', r.id)
set('team', r.team)
set('route', r.route)
set('queue', queue)
set('source', r.source)
set('lane', lane)
set('warm', pool and r.pool)
set('class', r.class)
set('idempotency', idem)
set('batch', batch)
set('item', batch and r.item.index)
set('once', r.once and 1)
set('listener', r.listener)
set('parked', line and 1 or 0)
set('order', line)
set('waitingFor', line and EARLIER)
redis.call('HSET', key, unpack(fields, 1, count))
local parked = short ~= nil or line ~= nil
if r.uses then
  redis.call('SADD', P..':users:'..r.sandbox, r.id)
  use(r.sandbox, r.now)
end
if short then standInQuotaLine(r.id, r.team, r.class, short)
else
  if limits then countIn(r.id, r.team, r.class, limits)
  elseif r.class then
    redis.call('SADD', P..':teams', r.team)
    if r.class ~= 'others' then add('SADD', flight(r.class, r.team), r.id) end
  end
  if not lane and not home then parked = not enter(r.id) end
end
if idem then redis.call('SET', idem, r.id) end
add('ZADD', P..':open', r.now, r.id)
emit('operation.accepted', r.now, r.id, r.sandbox, r.team, cjson.encode(about))
-- Sealed just before, with an expiry in case this step had never come.
if r.sealed then redis.call('PERSIST', P..':secret:'..r.id) end
if r.kind == 'upload' then
  redis.call('PERSIST', P..':content:'..r.id)
  redis.call('ZADD', P..':contents', '+inf', r.id)
end
if limits then flush() end -- the next one is measured by them
return {'accepted', r.id, r.sandbox, parked and '1' or '0', queue, queue == 'warm' and '0' or r.priority, r.team}
end
`;

/** Accepts, and what may go at once has its job with this step; only those for `place`, which have a priority, are left to who asked. */
const withAccept = (body: string) =>
  withQuotas(`${JOB_LUA}${ACCEPT_ONE}
local function acceptWithJob(r)
  local reply = accept(r)
  local outcome, id, sandbox, parked, queue, _, team = unpack(reply)
  if outcome == 'accepted' and parked == '0' and queue ~= 'place' then
    addJob(queue, id, r.kind, {operation = id, sandbox = sandbox, team = team}, r.now, r.trace)
  end
  return reply
end
${body}`);

/** ARGV: request JSON → [outcome, operation, sandbox], and for accepted and existing: parked, queue, priority, team. */
export const ACCEPT = withAccept(`
local reply = acceptWithJob(cjson.decode(ARGV[2]))
flush()
return reply
`);

/**
 * Tells of ends that come near, and accepts what ends a page of sandboxes whose time is up, in the same step: whoever dies has
 * done all of it or nothing. ARGV: requests JSON by action, whose input names the sandbox ARGV[3]; operation ids JSON, as many
 * as a page has; ms until what is under way is looked at again, now or '' for this server's clock
 * → [whether there may be more, [sandbox, operation, action]…].
 */
export const END_DUE = withAccept(`
local requests, any, ids, again = cjson.decode(ARGV[2]), ARGV[3], cjson.decode(ARGV[4]), ARGV[5]
local now, page = tonumber(ARGV[6]) or nowMs(), #ids
local later = string.format('%.0f', now + again)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P..':expiring', '-inf', now, 'LIMIT', 0, page)) do
  redis.call('ZREM', P..':expiring', id)
  local state, team, maker, action = unpack(redis.call('HMGET', sbxKey(id), 'state', 'team', 'operation', 'ttlAction'))
  local at = endOf(id)
  if state and not GONE[state] and at and at > now then
    emit('sandbox.expiring', string.format('%.0f', now), maker, id, team, cjson.encode({expiresAt = at, action = action or 'destroy'}))
  end
end
local function isUsed(id)
  for _, op in ipairs(redis.call('SMEMBERS', P..':users:'..id)) do
    local status = redis.call('HGET', opKey(op), 'status')
    if status and not ENDED[status] then return true end
  end
  return false
end
-- The same again would only stand in line behind it.
local function isUnderWay(id, action)
  for _, op in ipairs(redis.call('LRANGE', P..':changes:'..id, 0, -1)) do
    local status, kind, input = unpack(redis.call('HMGET', opKey(op), 'status', 'kind', 'input'))
    if status and not ENDED[status] and (kind == 'destroy' or kind == 'power' and cjson.decode(input).action == action) then return true end
  end
  return false
end
local function ask(id, action)
  local r = requests[action]
  local fields = r.operationSet
  if not r.inputAt then
    for at = 1, #fields, 2 do
      if fields[at] == 'input' then r.inputAt, r.input = at + 1, fields[at + 1] end
    end
  end
  fields[r.inputAt] = string.gsub(r.input, any, id)
  r.id, r.sandbox = table.remove(ids), id
  return acceptWithJob(r)
end
local due, out = redis.call('ZRANGEBYSCORE', P..':expiries', '-inf', now, 'LIMIT', 0, page), {}
for _, id in ipairs(due) do
  local state, team, action, seconds, extends =
    unpack(redis.call('HMGET', sbxKey(id), 'state', 'team', 'ttlAction', 'ttlSeconds', 'ttlExtendOnUse'))
  action = action or 'destroy'
  if not team or GONE[state] then redis.call('ZREM', P..':expiries', id)
  elseif extends == 'true' and seconds and isUsed(id) then extendEnd(id, now + seconds * 1000, true)
  else
    -- What was asked for may fail for good (its node is down): then it is asked for again.
    redis.call('ZADD', P..':expiries', later, id)
    if not isUnderWay(id, action) then
      local outcome, operation = unpack(ask(id, action))
      if outcome == 'accepted' then out[#out+1] = {id, operation, action} end
    end
  end
end
flush()
return {#due == page and 1 or 0, out}
`);

/**
 * ARGV: batch, JSON of [request, [[operation, sandbox, index]…]]… → for each a text: what ACCEPT says of it, without the
 * ids. Items with the same input share a request.
 */
export const ACCEPT_ITEMS = withQuotas(`${ACCEPT_ONE}
local batch, out, accepted = ARGV[2], {}, 0
local open, stop = unpack(redis.call('HMGET', batchKey(batch), 'open', 'stop'))
local groups, indexes = cjson.decode(ARGV[3]), {}
for _, group in ipairs(groups) do
  for _, item in ipairs(group[2]) do indexes[#indexes+1] = item[3] end
end
local found, known = redis.call('HMGET', batchPart(batch, 'items'), unpack(indexes)), {}
for at, index in ipairs(indexes) do known[index] = found[at] end
local now
for _, group in ipairs(groups) do
  local r = group[1]
  now = r.now
  for _, item in ipairs(group[2]) do
    local id, sandbox, index = unpack(item)
    r.id, r.sandbox, r.item = id, sandbox, {batch = batch, index = index, known = known[index], open = open, stop = stop}
    local reply = accept(r)
    if reply[1] == 'accepted' and known[index] ~= id then
      known[index] = id
      accepted = accepted + 1
    end
    table.remove(reply, 2)
    table.remove(reply, 2)
    out[#out+1] = table.concat(reply, ' ')
  end
end
if accepted > 0 then
  redis.call('HINCRBY', batchKey(batch), 'queued', accepted)
  redis.call('ZADD', P..':batches-open', now, batch)
end
flush()
return out
`);

/** Of a command with its input: however it is quoted, it fits into one argument. */
const AT_ONCE_BYTES = 30_000;

/** What this version knows: kinds, with how new an operation of each may be, and states of sandboxes. */
const KNOWN = `
local VERSIONS = {${Object.entries<JobSpec>(jobs)
  .map(([kind, { version = 1 }]) => `['${kind}']=${version}`)
  .join(",")}}
local STATES = ${luaSet(SANDBOX_STATES)}
`;

/** Claims an operation in one step; `return`s as CLAIM. */
export const CLAIM_LUA = `${KNOWN}
local function claim(id, fence, job, now)
local key = opKey(id)
local status, current, parked, batch, holder, kind, version, sandbox, lane, queue, step, abort, once, startedAt, waitingFor =
  unpack(redis.call('HMGET', key, 'status', 'job', 'parked', 'batch', 'fence', 'kind', 'version', 'sandbox', 'lane', 'queue', 'step', 'abort', 'once', 'startedAt', 'waitingFor'))
if not status then return {'unknown'} end
if ENDED[status] then return {'ended', redis.call('HGETALL', key)} end
if job ~= '' and current ~= job then return {'stale'} end
-- Without a job only what stands still may be claimed: parked, or nothing begun.
if job == '' and parked ~= '1' and step then return {'stale'} end
local state, node, address = unpack(redis.call('HMGET', sbxKey(sandbox), 'state', 'node', 'address'))
if (VERSIONS[kind] or 0) < tonumber(version or 1) or (state and not STATES[state]) then
  redis.call('HSET', key, 'waitingFor', 'a newer worker')
  return {'newer', kind, version or '1', state or ''}
end
-- Back from aside, or from a node, it waits for a turn first: many that come back together would take one after the other.
if lane and queue == 'place' and job ~= '' and not step and not abort then
  local had, has = hasTurn(id), standInLine(id)
  if not had and (not has or othersWait(key)) then
    redis.call('HSET', key, 'job', id..'.'..redis.call('HINCRBY', key, 'seq', 1))
    return {has and 'again' or 'stale'}
  end
end
local set = {'fence', fence}
redis.call('HINCRBY', key, 'revision', 1)
if batch then
  local stop, reason = unpack(redis.call('HMGET', batchKey(batch), 'stop', 'reason'))
  if stop and (status == 'queued' or stop ~= 'stop') then
    redis.call('HSETNX', key, 'abort', reason)
    abort = reason
  end
end
-- Waiting for a node is no run: it counts neither as a crash nor against the time limit.
if queue ~= 'place' then
  set[#set+1], set[#set+2] = 'status', 'running'
  if not startedAt then set[#set+1], set[#set+2] = 'startedAt', now end
  redis.call('HINCRBY', key, 'claims', 1)
  if waitingFor then redis.call('HDEL', key, 'waitingFor') end
end
local own = redis.call('GET', P..':secret:'..id)
-- A command that must not be sent twice is on record as sent from here on where nothing is left to do before it is: it
-- stands in the queue of its node, its address is known, and what it says needs no files. The same claim again, after a
-- lost reply, has recorded that itself.
local fresh = once and job ~= '' and not abort and (not step or holder == fence or not string.find(step, '"sent"', 1, true))
local sends = fresh and state == 'running' and node and address and queue == 'exec-'..node
  and redis.call('HSTRLEN', key, 'input') + (own and #own or 0) < ${AT_ONCE_BYTES}
if sends then set[#set+1], set[#set+2] = 'step', '{"name":"sent","at":'..now..'}' end
if batch then applyOperation(key, {set = set, unset = {}}) else apply(key, set, {}) end
return {'claimed', redis.call('HGETALL', key), redis.call('HGETALL', sbxKey(sandbox)),
  own, redis.call('GET', P..':secret:'..sandbox), sends and 1 or 0}
end
`;

/**
 * ARGV: id, fence, job, now, lock key, lock token, lock ms → [outcome] or ['claimed', operation hash, sandbox hash, what is
 * sealed for each of them, 1 where it is on record as sent from here on].
 * `again`: it needs another job, behind those that are ready.
 * BullMQ's lock is checked and renewed in the same step, so a run that slept past its lock can't claim over its successor.
 */
export const CLAIM = withPrelude(`${CLAIM_LUA}
local id, fence, job, now, lock = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if lock ~= '' then
  if redis.call('GET', lock) ~= ARGV[7] then return {'stale'} end
  redis.call('PEXPIRE', lock, ARGV[8])
end
return claim(id, fence, job, now)
`);

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

/**
 * What is typed into a shell. ARGV: operation, entry's id, kind, data → outcome. The same entry again, after a lost reply,
 * is refused by its id. The key goes by itself when its writer gives no more sign of life.
 */
export const ADD_INPUT = withPrelude(`
local id, entry = ARGV[2], ARGV[3]
local key = P..':shell-input:'..id
local status, kind = unpack(redis.call('HMGET', opKey(id), 'status', 'kind'))
if kind ~= 'shell' or ENDED[status] then return 'ended' end
if redis.call('XLEN', key) >= 4096 then return 'full' end
local added = redis.pcall('XADD', key, entry, 'k', ARGV[4], 'd', ARGV[5])
if type(added) == 'table' and added.err then
  local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  return newest and newest[1] == entry and 'ok' or 'superseded'
end
redis.call('EXPIRE', key, 60)
redis.call('PUBLISH', key, entry)
return 'ok'
`);

/** Live output of a run. ARGV: id, fence, entries JSON, now → how many listen; -1 when the run may not write any more. */
export const ADD_OUTPUT = withPrelude(`
local id, fence = ARGV[2], ARGV[3]
local holder, status = unpack(redis.call('HMGET', opKey(id), 'fence', 'status'))
if holder ~= fence or ENDED[status] then return -1 end
return addOutput(id, fence, cjson.decode(ARGV[4]), ARGV[5])
`);

/** Of results that go out with the message of their end; who gets none reads the record. */
const TOLD_BYTES = 16_384;

/**
 * The end of an operation and its event, in one step → [outcome, released operation…].
 * ARGV as WRITE, with write.status, write.event and write.output (the rest of the live output) besides.
 */
export const END = withQuotas(`${PATCH}
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

/** Of numbers that sandboxes had, so many are remembered in the order in which they were given back. */
const FREED_KEPT = 100_000;

/**
 * Leases a number from a range for the sandbox of a run: one that no sandbox has had yet, in turn, then the one that was given
 * back longest ago. So none is used again before the whole range has passed since its release; where nearly all are in use, what
 * is left passes sooner. ARGV: id, fence, first, last, revision, now → ['ok', vmid] or [outcome].
 */
export const LEASE_VMID = withPrelude(`
local id, fence, first, last = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local key = opKey(id)
local sandbox = redis.call('HGET', key, 'sandbox') or ''
local sk, leases, freed = sbxKey(sandbox), P..':vmids', P..':vmids-freed'
local held = redis.call('HGET', sk, 'vmid')
if isRepeated(key, fence, ARGV[6]) then return {'ok', held} end
local refused = mayWrite(key, fence, ARGV[6])
if refused then return {refused} end
local range = first..'-'..last
local known, left = unpack(redis.call('HMGET', P..':vmid-lap', 'range', 'left'))
left = known == range and tonumber(left) or last - first + 1
local function nextUnused()
  local at, vmid = tonumber(redis.call('GET', P..':vmid-next') or first), nil
  while left > 0 and not vmid do
    if at < first or at > last then at = first end
    if not redis.call('ZSCORE', freed, at) and redis.call('HSETNX', leases, at, sandbox) == 1 then vmid = at end
    at, left = at + 1, left - 1
  end
  redis.call('SET', P..':vmid-next', at)
  return vmid
end
local function longestFree()
  while true do
    local vmid = tonumber(redis.call('ZPOPMIN', freed)[1])
    if not vmid then return nil end
    if vmid >= first and vmid <= last and redis.call('HSETNX', leases, vmid, sandbox) == 1 then return vmid end
  end
end
local isLooked = left == 0
local vmid = nextUnused() or longestFree()
if not vmid and isLooked then
  -- Those of which nobody has told that they were given back.
  left = last - first + 1
  vmid = nextUnused()
end
redis.call('HSET', P..':vmid-lap', 'range', range, 'left', left)
if not vmid then return {'exhausted'} end
if held and redis.call('HGET', leases, held) == sandbox then
  redis.call('HDEL', leases, held)
  redis.call('ZADD', freed, ARGV[7], held)
end
redis.call('ZREMRANGEBYRANK', freed, 0, -${FREED_KEPT + 1})
redis.call('HSET', sk, 'vmid', vmid)
redis.call('HINCRBY', key, 'revision', 1)
return {'ok', tostring(vmid)}
`);

/**
 * Leases one certain VMID for the sandbox of a run. ARGV: id, fence, vmid, revision → ['ok'] or [outcome]; ['taken', holder]
 * where another has it.
 */
export const CLAIM_VMID = withPrelude(`
local id, fence, vmid = ARGV[2], ARGV[3], ARGV[4]
local key = opKey(id)
if isRepeated(key, fence, ARGV[5]) then return {'ok'} end
local refused = mayWrite(key, fence, ARGV[5])
if refused then return {refused} end
local sandbox = redis.call('HGET', key, 'sandbox')
local holder = redis.call('HGET', P..':vmids', vmid)
if holder and holder ~= sandbox then return {'taken', holder} end
redis.call('HSET', P..':vmids', vmid, sandbox)
redis.call('HSET', sbxKey(sandbox), 'vmid', vmid)
redis.call('HINCRBY', key, 'revision', 1)
return {'ok'}
`);

/** Leases an IPv4 address, next-fit. ARGV: id, fence, first, last (as numbers), prefix length, revision → ['ok', address/bits] or [outcome]. */
export const LEASE_ADDRESS = withPrelude(`
local id, fence, first, last = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local key = opKey(id)
local sandbox = redis.call('HGET', key, 'sandbox') or ''
local sk, leases, cursor = sbxKey(sandbox), P..':ips', P..':ip-next'
local held = redis.call('HGET', sk, 'leasedIp')
if isRepeated(key, fence, ARGV[7]) then return {'ok', held} end
local refused = mayWrite(key, fence, ARGV[7])
if refused then return {refused} end
if held then
  redis.call('HINCRBY', key, 'revision', 1)
  return {'ok', held}
end
local at = tonumber(redis.call('GET', cursor) or first)
if at < first or at > last then at = first end
for _ = first, last do
  local n = at
  at = at + 1
  if at > last then at = first end
  local address = string.format('%d.%d.%d.%d/%s', math.floor(n / 16777216), math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256, ARGV[6])
  if redis.call('HSETNX', leases, address, sandbox) == 1 then
    redis.call('SET', cursor, at)
    redis.call('HSET', sk, 'leasedIp', address)
    redis.call('HINCRBY', key, 'revision', 1)
    return {'ok', address}
  end
end
return {'exhausted'}
`);

/** Claims the address that a container was seen to have. ARGV: id, fence, address, revision → outcome; `taken` when a live sandbox has it. */
export const CLAIM_ADDRESS = withPrelude(`
local id, fence, address = ARGV[2], ARGV[3], ARGV[4]
local key = opKey(id)
if isRepeated(key, fence, ARGV[5]) then return 'ok' end
local refused = mayWrite(key, fence, ARGV[5])
if refused then return refused end
local sandbox = redis.call('HGET', key, 'sandbox')
local sk, claims = sbxKey(sandbox), P..':addresses'
local holder = redis.call('HGET', claims, address)
if holder and holder ~= sandbox then
  local state, has = unpack(redis.call('HMGET', sbxKey(holder), 'state', 'address'))
  if state and not GONE[state] and has == address then return 'taken' end
end
local before = redis.call('HGET', sk, 'address')
if before and before ~= address and redis.call('HGET', claims, before) == sandbox then redis.call('HDEL', claims, before) end
redis.call('HSET', claims, address, sandbox)
redis.call('HSET', sk, 'address', address)
redis.call('HINCRBY', key, 'revision', 1)
return 'ok'
`);

/**
 * Claims another address for a running sandbox, seen by somebody without a run. ARGV: sandbox, the address that it had, the
 * new one → outcome; `moved`: it has another one already; `taken`: a live sandbox has it.
 */
export const MOVE_ADDRESS = withPrelude(`
local id, from, to = ARGV[2], ARGV[3], ARGV[4]
local sk, claims = sbxKey(id), P..':addresses'
local state, before = unpack(redis.call('HMGET', sk, 'state', 'address'))
if state ~= 'running' or before ~= from then return 'moved' end
local holder = redis.call('HGET', claims, to)
if holder and holder ~= id then
  local theirs, has = unpack(redis.call('HMGET', sbxKey(holder), 'state', 'address'))
  if theirs and not GONE[theirs] and has == to then return 'taken' end
end
if redis.call('HGET', claims, from) == id then redis.call('HDEL', claims, from) end
redis.call('HSET', claims, to, id)
redis.call('HSET', sk, 'address', to)
return 'ok'
`);

/** Passes on turns of operations whose record somebody removed. → operations that have their turn now. */
export const MEND_TURNS = withPrelude(`
local out = {}
for _, lane in ipairs({'interactive', 'batch', 'pool'}) do
  local turns = redis.call('HGETALL', turnsOf(lane))
  for i = 1, #turns, 2 do
    local status = redis.call('HGET', opKey(turns[i + 1]), 'status')
    if not status or ENDED[status] then passTurn(lane, turns[i], out) end
  end
end
return out
`);

/**
 * Adds a sealed piece to a transfer's content, under a field of its own: the first begins it anew.
 * ARGV: operation, fence of its run or '' before it is accepted, field, piece, now, seconds until it goes by itself,
 * bytes that all may have together → outcome.
 * When they are too many, those go first that were fetched or given up first; what is on its way stays.
 */
export const ADD_CONTENT = withPrelude(`
local id, fence, field, piece, now, expiresIn, most = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local key, all, sizes = P..':content:'..id, P..':contents', P..':content-bytes'
if fence ~= '' and redis.call('HGET', opKey(id), 'fence') ~= fence then return 'fenced' end
if field == '0' then
  dropContent(id)
  for _, other in ipairs(redis.call('ZRANGE', all, 0, 19)) do
    if redis.call('EXISTS', P..':content:'..other) == 0 then dropContent(other) end
  end
elseif redis.call('EXISTS', key) == 0 then return 'gone' end
-- The same piece again, after a lost reply, counts once.
local size = #piece - redis.call('HSTRLEN', key, field)
while tonumber(redis.call('HGET', sizes, 'all') or '0') + size > most do
  local oldest, since = unpack(redis.call('ZRANGE', all, 0, 0, 'WITHSCORES'))
  if not oldest or tonumber(since) > now then return 'full' end
  dropContent(oldest)
end
redis.call('HSET', key, field, piece)
redis.call('EXPIRE', key, expiresIn)
redis.call('ZADD', all, now + expiresIn * 1000, id)
redis.call('HINCRBY', sizes, id, size)
redis.call('HINCRBY', sizes, 'all', size)
return 'ok'
`);

/** ARGV: operation. For content that nobody will ask for. */
export const DROP_CONTENT = withPrelude(`
dropContent(ARGV[2])
return 'ok'
`);

/**
 * Which of a page of open operations need help, oldest first. ARGV: from which time, how many of that time to pass over,
 * until which time, how many → [time and how many of it to go on from; '' at the end, [id, state]…].
 * States: `jobless` (no job, or one that ended without ending the operation), `parked`. Those without a record are forgotten.
 */
export const INSPECT = withPrelude(`
local from, offset, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local page = redis.call('ZRANGEBYSCORE', P..':open', from, ARGV[4], 'WITHSCORES', 'LIMIT', offset, limit)
local out = {}
for i = 1, #page, 2 do
  local id = page[i]
  local status, parked, queue, job, kind = unpack(redis.call('HMGET', opKey(id), 'status', 'parked', 'queue', 'job', 'kind'))
  local state = nil
  if not status or ENDED[status] then redis.call('ZREM', P..':open', id)
  elseif parked == '1' then state = kind == 'exec' and 'parked' or nil
  else
    local base = P..':'..queue..':'
    local carried = redis.call('EXISTS', base..job) == 1
      and not redis.call('ZSCORE', base..'completed', job) and not redis.call('ZSCORE', base..'failed', job)
    if not carried then state = 'jobless' end
  end
  if state then out[#out+1] = {id, state} end
end
-- Pages go by time, so that what ends meanwhile shifts nothing; within a millisecond, in which a batch has hundreds, by rank.
local last = page[#page]
if #page < 2 * limit then return {'', 0, out} end
return {last, last == from and offset + limit or 0, out}
`);
