/** What the reconcile compares of each sandbox: put together in Redis, since thousands of whole records take a worker a second. */
import { z } from "zod";
import { NodeName, SandboxId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";
import { SANDBOX_STATES, type SandboxState } from "./records.ts";

/** In all other states an operation is at work and looks itself, or nobody but a human can tell. */
export const STANDING: ReadonlySet<SandboxState> = new Set<SandboxState>([
  "running",
  "stopped",
  "paused",
  "template",
  "warm",
]);

/** In one step of Redis, and one go of the event loop: a gate may answer in the same process. */
const PAGE = 50;

/** ARGV: sandboxes → of each that has a place: [id, state, node, vmid, hostname, reserved MiB, GiB and cores, '' where that is not known]. */
const LIST = withPrelude(`
local out = {}
for at = 2, #ARGV do
  local id = ARGV[at]
  local found = redis.pcall('HMGET', sbxKey(id), 'state', 'node', 'vmid', 'hostname')
  local state, node, vmid, hostname = unpack(found)
  if not found.err and state and node and vmid then
    local text, mib, gib, cores = redis.call('HGET', P..':reserved:'..node, id), '', '', ''
    local read, reserved = pcall(cjson.decode, text or '')
    if read and type(reserved) == 'table' and type(reserved.disks) == 'table' then
      local sum = 0
      for _, size in pairs(reserved.disks) do sum = sum + size end
      mib, gib, cores = tostring(reserved.memoryMib), tostring(sum), tostring(reserved.cores or '')
    end
    out[#out+1] = {id, state, node, vmid, hostname or '', mib, gib, cores}
  end
end
return out
`);

const optional = z.string().transform((text) => (text === "" ? undefined : text));
const amount = optional.transform((text) => (text === undefined ? undefined : Number(text)));
const Row = z.tuple([
  SandboxId,
  z.enum(SANDBOX_STATES).catch("placing"), // of a newer version
  NodeName,
  z.coerce.number().pipe(Vmid),
  optional,
  amount,
  amount,
  amount,
]);

export interface Standing {
  id: SandboxId;
  state: SandboxState;
  node: NodeName;
  vmid: Vmid;
  hostname: string | undefined;
  /** What it has reserved of its node. */
  memoryMib: number | undefined;
  diskGib: number | undefined;
  cores: number | undefined;
}

/** Sandboxes that have a container, in any state; one whose record can't be read is left out. */
export async function listPlaced(redis: RedisConnection, keys: Keys): Promise<Standing[]> {
  const ids = await redis.zrange(keys.sandboxes, 0, "-1");
  const found: Standing[] = [];
  for (let at = 0; at < ids.length; at += PAGE) {
    const rows = await runScript(redis, LIST, [keys.open], [keys.prefix, ...ids.slice(at, at + PAGE)]);
    for (const row of z.unknown().array().parse(rows)) {
      const { data } = Row.safeParse(row);
      if (!data) continue;
      const [id, state, node, vmid, hostname, memoryMib, diskGib, cores] = data;
      found.push({ id, state, node, vmid, hostname, memoryMib, diskGib, cores });
    }
  }
  return found;
}
