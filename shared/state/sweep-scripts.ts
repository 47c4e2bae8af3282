/** What the sweeper looks at and mends. Scripts as in `prelude.ts`. */
import { withPrelude } from "./prelude.ts";

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
