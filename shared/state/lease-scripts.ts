/** VMIDs and addresses, each leased to one sandbox. Scripts as in `prelude.ts`. */
import { withPrelude } from "./prelude.ts";

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
local state, before, team, maker = unpack(redis.call('HMGET', sk, 'state', 'address', 'team', 'operation'))
if state ~= 'running' or before ~= from then return 'moved' end
local holder = redis.call('HGET', claims, to)
if holder and holder ~= id then
  local theirs, has = unpack(redis.call('HMGET', sbxKey(holder), 'state', 'address'))
  if theirs and not GONE[theirs] and has == to then return 'taken' end
end
if redis.call('HGET', claims, from) == id then redis.call('HDEL', claims, from) end
redis.call('HSET', claims, to, id)
redis.call('HSET', sk, 'address', to)
-- Every gate hears of it: the old address may be a neighbour's soon.
emit('sandbox.updated', string.format('%.0f', nowMs()), maker, id, team, '{"fields":["address"]}')
return 'ok'
`);
