/** The end of a transfer's content in Lua. */
export const CONTENT_LUA = `
-- The content of a transfer goes, and is not counted any more.
local function dropContent(id)
  local bytes = redis.call('HGET', P..':content-bytes', id)
  if not bytes then return end
  redis.call('UNLINK', P..':content:'..id)
  redis.call('ZREM', P..':contents', id)
  redis.call('HDEL', P..':content-bytes', id)
  redis.call('HINCRBY', P..':content-bytes', 'all', -tonumber(bytes))
end
`;
