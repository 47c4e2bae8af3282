/**
 * A task that dies hard leaves its lock on the container, and no API token can remove it: `pct unlock` on the node can.
 * That is done over SSH, to containers of ours only, and only once nothing that may have set the lock is left on the node.
 */
import { toFleetError } from "../../shared/errors.ts";
import type { NodeName, OperationId, Vmid } from "../../shared/ids.ts";
import { isTaskHolder, slotOf } from "../../shared/state/slots.ts";
import type { WorkerContext } from "../context.ts";
import type { Call } from "../pve/api.ts";
import type { TaskEntry } from "../pve/replies.ts";
import { parseUpid, type Upid } from "../pve/upid.ts";
import { isTaskDead } from "../ssh/node-tools.ts";
import type { Place } from "./look.ts";

/** What tasks of ours lock a container with; `backup`, `migrate` and their like are somebody else's. */
const OURS: ReadonlySet<string> = new Set(["create", "destroyed", "disk", "snapshot", "snapshot-delete", "rollback"]);
/** Their UPID names another container, the source. */
const MAKERS: ReadonlySet<string> = new Set(["vzclone", "vzcreate", "vzrestore"]);
/** The node's newest tasks; one that is older than these has ended. */
const NEWEST = 200;

/**
 * Removes the lock of a container that is ours, where its task is proven dead; returns whether it did. `owner`: the
 * operation that set it, if that is known. Without SSH, or with a doubt, nothing is done.
 */
export async function clearStaleLock(
  context: WorkerContext,
  { place, lock, owner }: { place: Place; lock: string; owner: OperationId },
  call: Call,
): Promise<boolean> {
  const { shell, log } = context;
  if (shell === null || !mayClear(context, place, lock)) return false;
  try {
    if (!(await seesAllTasks(context, place.node, call))) {
      log.warn(
        { ...place },
        `a lock may be stale, but without Sys.Audit on /nodes/${place.node} the token can't see whose it is`,
      );
      return false;
    }
    for (const upid of await findSuspects(context, place, owner, call)) {
      if (!(await isTaskDead(shell, parseUpid(upid), call))) return false;
    }
    await shell.run(place.node, { verb: "unlock", vmid: place.vmid }, call);
  } catch (error) {
    call.signal.throwIfAborted();
    // The lock is the caller's trouble, and stays it.
    const { code, facts } = toFleetError(error);
    log.warn({ ...facts, ...place, code, lock }, "could not remove a lock that seems stale");
    return false;
  }
  log.warn({ ...place, lock, operation: owner }, "lock of a dead task removed");
  return true;
}

/** Whether a stale lock is ours to remove. */
export function mayClear({ shell, config }: WorkerContext, { vmid }: Place, lock: string): boolean {
  const { first, last } = config.PVE_VMID_RANGE;
  return shell !== null && OURS.has(lock) && vmid >= first && vmid <= last;
}

/** Whether a task runs that may hold the lock, as far as the token sees: without Sys.Audit only those of its own. */
export async function isWorkedOn(
  { pve }: WorkerContext,
  { node, vmid }: Place,
  lock: string,
  call: Call,
): Promise<boolean> {
  const tasks = await pve.tasks.list(node, { source: "active", limit: NEWEST }, call);
  return tasks.some((task) => {
    const { type, id } = parseUpid(task.upid);
    const mayHold = id === String(vmid) || (type === "vzdump" && id === "") || (lock === "create" && MAKERS.has(type));
    return mayHold && task.endtime === undefined;
  });
}

/** Without Sys.Audit PVE lists the token's own tasks alone, and a human's at work would be missed. */
export async function seesAllTasks({ pve }: Pick<WorkerContext, "pve">, node: NodeName, call: Call): Promise<boolean> {
  return (await pve.permissions(`/nodes/${node}`, call)).has("Sys.Audit");
}

/** Whether a task of ours runs that may have set the lock of a container. A token sees its own tasks without any right. */
export async function mayBeWorkedOn(
  context: WorkerContext,
  place: Place,
  owner: OperationId,
  call: Call,
): Promise<boolean> {
  const suspects = await findSuspects(context, place, owner, { ...call, source: "active" });
  return suspects.length > 0;
}

/** Tasks that may have set the lock and did not end well, those that other operations are known to wait for left out. */
async function findSuspects(
  context: WorkerContext,
  { node, vmid }: Place,
  owner: OperationId,
  { source = "all", ...call }: Call & { source?: "active" | "all" },
): Promise<Upid[]> {
  const [listed, others] = await Promise.all([
    context.pve.tasks.list(node, { source, limit: NEWEST }, call),
    tasksOfOthers(context, node, owner),
  ]);
  // PVE's list of active tasks still shows those that have just ended.
  const tasks = source === "all" ? listed : listed.filter(({ endtime }) => endtime === undefined);
  return tasks.flatMap((task) => (isSuspect(task, vmid) && !others.has(task.upid) ? [task.upid as Upid] : [])); // PVE's own
}

/** Whether a task may have locked the container, and may still be at it. Pure. */
export function isSuspect({ upid, status, endtime }: Pick<TaskEntry, "upid" | "status" | "endtime">, vmid: Vmid) {
  const { type, id } = parseUpid(upid);
  // The backup of several guests names none, and takes and deletes a snapshot of each.
  const concerns = id === String(vmid) || MAKERS.has(type) || (type === "vzdump" && id === "");
  const fine = endtime !== undefined && (status === "OK" || status?.startsWith("WARNINGS") === true);
  return concerns && !fine;
}

async function tasksOfOthers({ slots, store }: WorkerContext, node: string, owner: OperationId): Promise<Set<string>> {
  const holders = await slots.holders(slotOf.node(node));
  const upids = holders.map(async (holder) => {
    // A task that holds its slot itself is of an operation that Redis lost: it may well be the one that set the lock.
    return isTaskHolder(holder) || holder === owner ? undefined : (await store.load(holder))?.step?.upid;
  });
  return new Set((await Promise.all(upids)).filter((upid) => upid !== undefined));
}
