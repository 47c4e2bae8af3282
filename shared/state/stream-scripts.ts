/** What goes into a shell and what commands print. Scripts as in `prelude.ts`. */
import { withPrelude } from "./prelude.ts";

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
