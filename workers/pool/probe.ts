/** Looking at members of pools: whether they answer, and whether one is somebody's whose claim Redis has lost. */
import { toFleetError } from "../../shared/errors.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { type Owner, readOwner } from "./owner-mark.ts";

/** Probes at once. */
const LANES = 16;

/** `lost`: it is somebody's who has another container, or none any more: nobody can use it. */
export type Finding = "ready" | "silent" | "owned" | "lost";

export async function loadMembers({ pools, store }: WorkerContext): Promise<SandboxRecord[]> {
  const ids = await pools.members();
  const records: (SandboxRecord | null)[] = [];
  for (let at = 0; at < ids.length; at += LANES)
    records.push(...(await Promise.all(ids.slice(at, at + LANES).map((id) => store.loadSandbox(id)))));
  return records.filter((one) => one !== null);
}

/** Looks at warm members, and writes down who may be claimed. Returns what was found, by id. */
export async function probeMembers(
  context: WorkerContext,
  template: string,
  members: readonly SandboxRecord[],
  signal: AbortSignal,
): Promise<Map<string, Finding>> {
  const { pools } = context;
  const found = new Map<string, Finding>();
  const lane = async (_: unknown, from: number) => {
    for (let at = from; at < members.length; at += LANES) {
      const member = members[at];
      if (member === undefined) return;
      const finding = await look(context, member, signal);
      found.set(member.id, finding);
      if (finding === "ready") await pools.seen(template, [member.id]);
      else if (finding === "silent") await pools.silent(template, member.id);
      else if (await pools.setAside(template, member.id))
        context.log.warn({ member: member.id, vmid: member.vmid, finding }, "a member of a pool has an owner already");
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  return found;
}

/** Before a pool is used behind another start of Redis: claims may have been lost, and their marks tell. */
export async function adoptPool(
  context: WorkerContext,
  template: string,
  server: string,
  signal: AbortSignal,
): Promise<Map<string, Finding>> {
  const members = (await loadMembers(context)).filter(({ pool, state }) => pool === template && state === "warm");
  const found = await probeMembers(context, template, members, signal);
  await context.pools.adopt(template, server);
  return found;
}

async function look(context: WorkerContext, member: SandboxRecord, signal: AbortSignal): Promise<Finding> {
  const { secrets, log } = context;
  const { execToken: token } = await secrets.get(member.id);
  if (member.address === undefined || token === undefined) return "silent";
  try {
    const owner = await readOwner(context, { address: member.address, token, signal });
    return owner === null ? "ready" : await judge(context, member, owner);
  } catch (error) {
    signal.throwIfAborted();
    log.debug({ member: member.id, code: toFleetError(error).code }, "a member of a pool does not answer");
    return "silent";
  }
}

async function judge(context: WorkerContext, member: SandboxRecord, owner: Owner | "unknown"): Promise<Finding> {
  const { store, pools, strays } = context;
  if (owner === "unknown") return "lost";
  const [operation, sandbox, losses] = await Promise.all([
    store.load(owner.operation),
    store.loadSandbox(owner.sandbox),
    strays.losses(),
  ]);
  if (operation && sandbox && !isEnded(operation.status) && sandbox.node === undefined) {
    await pools.own(sandbox.id, member.id);
    return "owned";
  }
  // One whose owner nobody knows may be somebody's work after a FLUSHALL; a lost second takes no more than that.
  if (operation || sandbox || losses.length > 0) return "lost";
  return "owned";
}
