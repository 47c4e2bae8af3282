/** Contents of transfers. Scripts as in `prelude.ts`. */
import { withPrelude } from "./prelude.ts";

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
