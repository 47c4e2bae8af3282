/** The step in which a run makes an operation its own. Scripts as in `prelude.ts`. */
import type { JobSpec } from "../jobs/define-job.ts";
import { jobs } from "../jobs/index.ts";
import { luaSet } from "./base-lua.ts";
import { withPrelude } from "./prelude.ts";
import { SANDBOX_STATES } from "./records.ts";

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
