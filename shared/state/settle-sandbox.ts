/** What the clockwork finds out about a sandbox on which nothing is at work. */
import type { SandboxId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import { encodeFields, type Fields } from "./codec.ts";
import type { Keys } from "./keys.ts";
import type { Command } from "./operations.ts";
import { withPrelude } from "./prelude.ts";
import type { SandboxRecord } from "./records.ts";

/**
 * Writes it unless the record has changed meanwhile, or an operation changes the sandbox: that one looks itself.
 * ARGV: sandbox, now, seconds that an ended record is kept, JSON of { was: [state, node, vmid], change, also, fields? } → 1 or 0.
 */
const SETTLE = withPrelude(`
local id, now, ttl, w = ARGV[2], ARGV[3], ARGV[4], cjson.decode(ARGV[5])
local key = sbxKey(id)
local state, node, vmid, operation, team = unpack(redis.call('HMGET', key, 'state', 'node', 'vmid', 'operation', 'team'))
if state ~= w.was[1] or node ~= w.was[2] or vmid ~= w.was[3] or redis.call('LLEN', P..':changes:'..id) > 0 then return 0 end
for _, command in ipairs(w.also) do redis.call(unpack(command)) end
setSandbox(id, w.change, now, operation, ttl)
if w.fields then emit('sandbox.updated', now, operation, id, team, cjson.encode({fields = w.fields})) end
return 1
`);

export interface Settlement {
  sandbox: Fields<Omit<SandboxRecord, "services">>;
  also?: readonly Command[];
  /** What the event `sandbox.updated` names; absent: none. A change of state has an event of its own. */
  fields?: readonly string[];
}

/** False: it is not as it was. */
export async function settleSandbox(
  redis: RedisConnection,
  keys: Keys,
  was: SandboxRecord & { id: SandboxId },
  { sandbox, also = [], fields }: Settlement,
  { now, retentionSec }: { now: number; retentionSec: number },
): Promise<boolean> {
  const before = [was.state, was.node ?? "", String(was.vmid ?? "")];
  const write = { was: before, change: encodeFields(sandbox), also: also.map((words) => words.map(String)), fields };
  const args = [keys.prefix, was.id, now, retentionSec, JSON.stringify(write)];
  return (await runScript(redis, SETTLE, [keys.open], args)) === 1;
}
