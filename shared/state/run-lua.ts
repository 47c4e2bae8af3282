/** What a run may still write, by its fence and revision, and its live output; in Lua. */
import { OUTPUT_KEPT_BYTES, OUTPUT_KEPT_ENTRIES } from "./output.ts";

export const RUN_LUA = `
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
