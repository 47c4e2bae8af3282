/** Questions about all sandboxes at once, answered within Redis: thousands of records would take longer to come than to be read. */
import { z } from "zod";
import { defineScript, runScripts } from "../../shared/redis/script.ts";
import type { WorkerContext } from "../context.ts";

/** Read in one step of Redis, which does nothing else meanwhile: about a millisecond. */
const PAGE = 500;

/** How many there are of a state and a pool. */
export interface Tally {
  state: string;
  pool: string | null;
  count: number;
}

/** ARGV: what the keys of sandboxes begin with; ids. */
const TALLY = defineScript(`
local counts = {}
for at = 2, #ARGV do
  local one = redis.call('HMGET', ARGV[1]..ARGV[at], 'state', 'pool')
  if one[1] then
    local what = one[1]..' '..(one[2] or '')
    counts[what] = (counts[what] or 0) + 1
  end
end
local reply = {}
for what, count in pairs(counts) do
  reply[#reply + 1] = what
  reply[#reply + 1] = count
end
return reply
`);

const Counts = z.array(z.array(z.union([z.string(), z.number()])));

export async function tallySandboxes(context: WorkerContext): Promise<Tally[]> {
  const counts = new Map<string, number>();
  for (const reply of Counts.parse(await ask(context, TALLY, []))) {
    for (let at = 0; at < reply.length; at += 2) {
      const what = String(reply[at]);
      counts.set(what, (counts.get(what) ?? 0) + Number(reply[at + 1]));
    }
  }
  return [...counts].map(([what, count]) => {
    const [state = "", ...pool] = what.split(" ");
    return { state, pool: pool.join(" ") || null, count };
  });
}

/** ARGV: as above, then state, team and words ("": any), ids. */
const FIND = defineScript(`
local state, team, words = ARGV[2], ARGV[3], ARGV[4]
local total, found = 0, {}
for at = 5, #ARGV do
  local id = ARGV[at]
  local one = redis.call('HMGET', ARGV[1]..id, 'state', 'team', 'vmid', 'hostname', 'template', 'instanceId')
  if one[1] then
    total = total + 1
    if (state == '' or one[1] == state) and (team == '' or one[2] == team) then
      local fits = words == '' or one[3] == words or id:find(words, 1, true)
      for field = 4, 6 do fits = fits or one[field] and one[field]:lower():find(words, 1, true) end
      if fits then found[#found + 1] = id end
    end
  end
end
return {total, found}
`);

const Found = z.array(z.tuple([z.number(), z.array(z.string())]));

/** Ids, newest first, and how many there are in all. */
export async function findSandboxes(
  context: WorkerContext,
  { q, state, team }: { q: string; state: string; team: string },
): Promise<{ ids: string[]; total: number }> {
  const pages = Found.parse(await ask(context, FIND, [state, team, q.toLowerCase()]));
  return { ids: pages.flatMap(([, ids]) => ids), total: pages.reduce((sum, [count]) => sum + count, 0) };
}

/** A reply a page. */
async function ask({ redis, keys }: WorkerContext, script: typeof TALLY, args: readonly string[]): Promise<unknown> {
  const ids = await redis.zrevrange(keys.sandboxes, 0, -1);
  const pages = Array.from({ length: Math.ceil(ids.length / PAGE) }, (_, at) => ids.slice(at * PAGE, (at + 1) * PAGE));
  const calls = pages.map((page) => [keys.sandbox(""), ...args, ...page]);
  return runScripts(redis, script, [keys.sandboxes], calls);
}
