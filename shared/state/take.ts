/// <reference path="../bullmq-scripts.d.ts" />
/** A worker's way to its next operation: BullMQ's step that takes a job claims what the job carries as well. */
import { moveToActive } from "bullmq/dist/cjs/scripts/moveToActive-11.js";
import { z } from "zod";
import { newFence } from "../ids.ts";
import { LOCK_MS } from "../queues.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import { CLAIM_LUA } from "./claim-scripts.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";

/**
 * ARGV: queue, lock token, fence, now, lock ms → [reply of BullMQ's script, reply of CLAIM or nil, 1 where the queue holds no
 * more jobs that will run]. Without a claim there is no job, or one whose operation could not be claimed for an error.
 * Asked again after a lost reply it gives the same job, of which a command may be on record as sent by now. A worker takes
 * one after the other, so what it took last is enough to know.
 */
const TAKE = withPrelude(`${CLAIM_LUA}
local function moveToActive(KEYS, ARGV)
${moveToActive.content}
end
local token, fence, now, lockMs = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local base, keys = P..':'..ARGV[2]..':', {}
for at, part in ipairs({'wait', 'active', 'prioritized', 'events', 'stalled', 'limiter', 'delayed', 'paused', 'meta', 'pc', 'marker'}) do
  keys[at] = base..part
end
local last = P..':taken:'..string.match(token, '^[^:]*')
local before, job = string.match(redis.call('GET', last) or '', '^(%S+) (%S+)$')
local reply
if before == token and redis.call('GET', base..job..':lock') == token then reply = {redis.call('HGETALL', base..job), job, 0, 0}
else
  reply = moveToActive(keys, {base, now, cmsgpack.pack({token = token, lockDuration = lockMs})})
  if type(reply[1]) ~= 'table' then return {reply, false, 0} end
  job = reply[2]
end
local isLast = redis.call('LLEN', keys[1]) == 0 and redis.call('ZCARD', keys[3]) == 0
-- BullMQ wakes the next worker with each job that is taken, whether there is another or not.
if isLast then redis.call('ZREM', keys[11], '0') end
-- An error must not lose a job that is taken: its run meets it again with a claim of its own.
local fine, claimed = pcall(function()
  for at = 1, #reply[1], 2 do
    if reply[1][at] == 'data' then return claim(cjson.decode(reply[1][at + 1]).operation, fence, job, now) end
  end
end)
if fine and claimed and claimed[6] == 1 then redis.call('SET', last, token..' '..job, 'PX', lockMs) end
return {reply, fine and claimed, isLast and redis.call('ZCARD', keys[7]) == 0 and 1 or 0}
`);

const Job = z.tuple([z.unknown(), z.union([z.string(), z.number()])], z.unknown());
const TakeReply = z.tuple([Job, z.array(z.unknown()).nullable(), z.number()]);

/** A claim that came with the job; `reply` as CLAIM gives it, see `toClaim`. */
export interface ClaimedAhead {
  fence: string;
  reply: readonly unknown[];
  /** From before it was asked for, by `performance.now`. */
  at: number;
}

export interface Taken {
  /** As BullMQ's own script replies. */
  job: unknown[];
  id: string | undefined;
  /** Absent where the run is to claim it itself. */
  claimed: ClaimedAhead | undefined;
  /** The queue holds no more jobs, neither ready nor delayed. */
  isLast: boolean;
}

/** The next job of a queue for the holder of a lock token, with the operation that it carries. */
export async function takeJob(
  redis: RedisConnection,
  keys: Keys,
  { queue, token, fence = newFence() }: { queue: string; token: string; fence?: string },
): Promise<Taken> {
  const at = performance.now();
  const args = [keys.prefix, queue, token, fence, Date.now(), LOCK_MS];
  const [job, reply, isLast] = TakeReply.parse(await runScript(redis, TAKE, [keys.open], args));
  return {
    job,
    id: typeof job[1] === "string" ? job[1] : undefined,
    claimed: reply === null ? undefined : { fence, reply, at },
    isLast: isLast === 1,
  };
}
