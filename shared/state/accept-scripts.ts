/** The steps that accept operations. Scripts as in `prelude.ts`. */
import { JOB_LUA } from "./job-lua.ts";
import { withPrelude } from "./prelude.ts";

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
  withPrelude(`${JOB_LUA}${ACCEPT_ONE}
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
export const ACCEPT_ITEMS = withPrelude(`${ACCEPT_ONE}
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
