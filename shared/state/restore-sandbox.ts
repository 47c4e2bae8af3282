/** A sandbox's record made anew from what its container tells, as after Redis lost its data. */
import { z } from "zod";
import type { SandboxId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import { encodeFields, type Fields } from "./codec.ts";
import type { Keys } from "./keys.ts";
import type { Command } from "./operations.ts";
import { withPrelude } from "./prelude.ts";
import { type SandboxRecord, serviceField } from "./records.ts";
import { STRAY } from "./strays.ts";

/**
 * In one step, and once. ARGV: sandbox, now, JSON of { set, vmid, team, createdAt, also, expiresAt? }
 * → `ok`; `known`: it has a record; what is somebody else's: `vmid`, `instance`, `address`.
 */
const RESTORE = withPrelude(`
local id, now, w = ARGV[2], ARGV[3], cjson.decode(ARGV[4])
local key = sbxKey(id)
if redis.call('EXISTS', key) == 1 then return 'known' end
local function isTaken(hash, field)
  local holder = field and redis.call('HGET', P..hash, field)
  return holder and holder ~= id and holder ~= '${STRAY}'
end
if isTaken(':vmids', w.vmid) then return 'vmid' end
if isTaken(':instances', w.instance) then return 'instance' end
if isTaken(':ips', w.leasedIp) or isTaken(':addresses', w.address) then return 'address' end
redis.call('HSET', P..':vmids', w.vmid, id)
redis.call('HDEL', P..':strays', w.vmid)
if w.instance then redis.call('HSET', P..':instances', w.instance, id) end
if w.leasedIp then redis.call('HSET', P..':ips', w.leasedIp, id) end
if w.address then redis.call('HSET', P..':addresses', w.address, id) end
redis.call('HSET', key, unpack(w.set))
redis.call('HSET', key, 'stateAt', now)
redis.call('ZADD', P..':sandboxes', w.createdAt, id)
redis.call('ZADD', P..':team:'..w.team, w.createdAt, id)
redis.call('SADD', P..':teams', w.team)
redis.call('SADD', P..':restamp', id)
for _, command in ipairs(w.also) do redis.call(unpack(command)) end
if w.expiresAt then setEnd(id, tonumber(w.expiresAt)) end
local state, idle = unpack(redis.call('HMGET', key, 'state', 'idleSeconds'))
watchIdle(id, state, idle, now)
-- None is used again before the whole range has passed.
if tonumber(w.vmid) >= tonumber(redis.call('GET', P..':vmid-next') or 0) then redis.call('SET', P..':vmid-next', w.vmid + 1) end
local node, operation = unpack(redis.call('HMGET', key, 'node', 'operation'))
emit('sandbox.changed', now, operation, id, w.team, cjson.encode({state = state, before = 'lost', node = node, vmid = tonumber(w.vmid)}))
return 'ok'
`);

const Outcome = z.enum(["ok", "known", "vmid", "instance", "address"]);

export interface Restored {
  record: Omit<SandboxRecord, "stateAt" | "expiresAt">;
  vmid: Vmid;
  inputHash: string | undefined;
  expiresAt: number | undefined;
  /** What else becomes true with it. */
  also: readonly Command[];
}

export async function restoreSandbox(
  redis: RedisConnection,
  keys: Keys,
  { record: { services, ...record }, vmid, inputHash, expiresAt, also }: Restored,
  now: number,
): Promise<z.output<typeof Outcome>> {
  const fields: Fields<typeof record> = record;
  const { set } = encodeFields({ ...fields, inputHash });
  for (const one of services) set.push(serviceField(one.name), JSON.stringify(one));
  const id: SandboxId = record.id;
  const { team, instanceId: instance, leasedIp, address, createdAt } = record;
  const change = { set, vmid: String(vmid), team, instance, leasedIp, address, createdAt: String(createdAt) };
  const args = { ...change, expiresAt: expiresAt && String(expiresAt), also: also.map((words) => words.map(String)) };
  return Outcome.parse(await runScript(redis, RESTORE, [keys.open], [keys.prefix, id, now, JSON.stringify(args)]));
}
