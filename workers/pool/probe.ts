/** Looking at members of pools: whether they answer, and whose those are that may have been claimed in a lost second. */
import { toFleetError } from "../../shared/errors.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { forEachRecord } from "../control/for-each-record.ts";
import { placeOf } from "../sandbox/look.ts";
import { parseStamp, type Stamp } from "../sandbox/stamp.ts";

/** Looks at once. */
const LANES = 16;
/** A busy node may take longer than a claim waits. */
const ANSWER_MS = 3_000;

/** `lost`: it may be somebody's of whom Redis knows nothing any more: nobody can use it. */
export type Finding = "ready" | "silent" | "owned" | "lost";

export async function loadMembers(context: Pick<WorkerContext, "pools" | "store" | "log">): Promise<SandboxRecord[]> {
  const ids = await context.pools.members();
  const records: SandboxRecord[] = [];
  const rest = ids.map((id) => ({ id })).values();
  const lane = () =>
    forEachRecord(context, rest, async ({ id }) => {
      const record = await context.store.loadSandbox(id);
      if (record) records.push(record);
    });
  await Promise.all(Array.from({ length: LANES }, lane));
  return records;
}

/** Looks at warm members, and writes down who may be claimed. Returns what was found, by id. */
export async function lookAtMembers(
  context: WorkerContext,
  members: readonly SandboxRecord[],
  { template, server, signal }: { template: string; server: string; signal: AbortSignal },
): Promise<Map<string, Finding>> {
  const { pools } = context;
  const found = new Map<string, Finding>();
  const rest = members.values();
  const lane = async () => {
    for (const member of rest) {
      const finding =
        member.warmOn === server ? await probe(context, member, signal) : await judge(context, member, signal);
      found.set(member.id, finding);
      if (finding === "ready") await pools.seen(template, [member.id]);
      else if (finding === "silent") await pools.silent(template, member.id);
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  return found;
}

/** That its daemon takes nobody else's token was seen when it was made. */
async function probe({ secrets, execd }: WorkerContext, member: SandboxRecord, signal: AbortSignal): Promise<Finding> {
  const { execToken: token } = await secrets.get(member.id);
  if (member.address === undefined || token === undefined) return "silent";
  const limited = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
  return (await execd.answers({ address: member.address, token, signal: limited })) ? "ready" : "silent";
}

/**
 * One that was ready before Redis was started: it may have been claimed in a second that Redis lost, and is given to nobody.
 * Only where the stamp has followed already, and its owner is still waiting, that one gets its own back.
 */
async function judge(context: WorkerContext, member: SandboxRecord, signal: AbortSignal): Promise<Finding> {
  const { store, pools, redis, keys, log } = context;
  const stamp = await readStamp(context, member, signal);
  if (stamp === "unreadable") return "silent";
  if (stamp === null || stamp.sandbox === member.id) return "lost";
  const [operation, sandbox] = await Promise.all([store.load(stamp.operation), store.loadSandbox(stamp.sandbox)]);
  log.warn({ member: member.id, vmid: member.vmid, sandbox: stamp.sandbox }, "a member of a pool has an owner already");
  if (operation && sandbox && !isEnded(operation.status) && sandbox.node === undefined) {
    await pools.own(sandbox.id, member.id);
    return "owned";
  }
  await redis.hdel(keys.poolsOwned, stamp.sandbox);
  return "lost";
}

async function readStamp(
  { pve, log }: WorkerContext,
  member: SandboxRecord,
  signal: AbortSignal,
): Promise<Stamp | "unreadable" | null> {
  const place = placeOf(member);
  if (place === null) return null;
  try {
    const { description } = await pve.lxc(place.node, place.vmid).config({ signal });
    return parseStamp(description, place.vmid);
  } catch (error) {
    signal.throwIfAborted();
    const { code } = toFleetError(error);
    log.info({ ...place, code, member: member.id }, "could not read whose a member of a pool is");
    return code === "container_missing" ? null : "unreadable";
  }
}
