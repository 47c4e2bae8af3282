/**
 * After a start of Redis, a failover too, its last writes may be gone, while PVE's tasks run on and containers exist.
 * Before a node's slots are given out again, the node itself is asked: a running task that no operation is known to hold a
 * slot for holds its own until it has ended (`reap-slots.ts`), so the limits hold over a lost second; a container without
 * record goes to the provision of its stamp, if that is still to be made. What is left is for `reconcile.ts`.
 */
import type { WorkerConfig } from "../../shared/config.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import { isTaskHolder, slotOf, taskOf } from "../../shared/state/slots.ts";
import type { WorkerContext } from "../context.ts";
import type { Call } from "../pve/api.ts";
import type { TaskEntry } from "../pve/replies.ts";
import { parseUpid, type Upid } from "../pve/upid.ts";
import type { Place } from "../sandbox/look.ts";
import { findStrays } from "./strays.ts";

/** More than a node ever runs. */
export const LIST_LIMIT = 1_000;
const DEADLINE_MS = 20_000;

/** What an operation that holds a slot is known to be busy with. */
interface Busy {
  vmid: Vmid | undefined;
  upid: string | undefined;
}

/** One adoption at a time in a process, for all who wait for it. */
const adoptions = new WeakMap<WorkerContext, { server: string; nodes: Map<NodeName, Promise<void>> }>();

/**
 * Looks at all nodes, and opens those that can tell: a provision may have been placed elsewhere since it was forgotten.
 * Throws `node_unreachable` and its like when `node` can't: then nothing can be begun there either.
 */
export async function adoptNode(context: WorkerContext, node: NodeName, server: string): Promise<void> {
  const running = adoptions.get(context);
  const { nodes } = running?.server === server ? running : begin(context, server);
  const own = nodes.get(node) ?? adopt(context, node, server);
  nodes.set(node, own);
  try {
    await Promise.all([own, ...[...nodes.values()].map((one) => one.catch(() => {}))]);
  } finally {
    adoptions.delete(context);
  }
}

function begin(context: WorkerContext, server: string) {
  const online = context.inventory.current().nodes.filter((one) => one.online);
  const nodes = new Map(online.map(({ name }) => [name, adopt(context, name, server)]));
  for (const one of nodes.values()) one.catch(() => {}); // who needs that node asks again, and hears why
  const adoption = { server, nodes };
  adoptions.set(context, adoption);
  return adoption;
}

async function adopt(context: WorkerContext, node: NodeName, server: string): Promise<void> {
  const call = { signal: AbortSignal.timeout(DEADLINE_MS) };
  const strays = await findStrays(context, await listOwnRange(context, node, call), call);
  for (const { place, stamp } of strays) {
    if (await context.strays.adopt(stamp, place))
      context.log.warn({ ...place, operation: stamp.operation }, "container that Redis forgot goes to its provision");
  }
  await adoptTasks(context, node, server, call);
}

async function listOwnRange({ pve, config }: WorkerContext, node: NodeName, call: Call): Promise<Place[]> {
  const { first, last } = config.PVE_VMID_RANGE;
  const containers = await pve.list(node, call);
  return containers.flatMap(({ vmid, template }) =>
    vmid >= first && vmid <= last && template !== true ? [{ node, vmid }] : [],
  );
}

async function adoptTasks(context: WorkerContext, node: NodeName, server: string, call: Call): Promise<void> {
  const { slots, pve, config, log } = context;
  const tasks = await pve.tasks.list(node, { source: "active", limit: LIST_LIMIT }, call);
  const running = tasks
    .filter(isRunning)
    .map(({ upid }) => upid as Upid) // PVE's own
    .filter((upid) => isOurs(upid, config));
  const busy = await holdersOf(context, slotOf.node(node));
  const claims: { upid: Upid; slots: string[] }[] = [];
  for (const upid of running) {
    if (!(await isHeld(context, upid, busy))) claims.push({ upid, slots: slotsOf(context, upid) });
  }
  await slots.adopt(node, server, claims);
  if (claims.length > 0)
    log.warn({ node, tasks: claims.length }, "running tasks of operations that Redis lost hold their slots");
}

/** By the token, and the container; a clone's task names its source alone. Other fleets may share the token. */
export function isOurs(upid: Upid, { PVE_API_TOKEN: token, PVE_VMID_RANGE: { first, last } }: WorkerConfig): boolean {
  const { user, type, id } = parseUpid(upid);
  return user === token.split("=")[0] && (type === "vzclone" || (Number(id) >= first && Number(id) <= last));
}

export const isRunning = ({ endtime, status }: Pick<TaskEntry, "endtime" | "status">): boolean =>
  endtime === undefined && (status ?? "RUNNING") === "RUNNING";

async function holdersOf({ slots, store }: WorkerContext, name: string): Promise<Busy[]> {
  const holders = await slots.holders(name);
  return Promise.all(
    holders.map(async (holder) => {
      if (isTaskHolder(holder)) return { vmid: undefined, upid: taskOf(holder) };
      const operation = await store.load(holder);
      const sandbox = operation && (await store.loadSandbox(operation.sandbox));
      return { vmid: sandbox?.vmid, upid: operation?.step?.upid };
    }),
  );
}

/** The UPID may not have reached the record yet. Then the container tells; or its source, which is cloned once at a time. */
async function isHeld({ slots }: WorkerContext, upid: Upid, busy: readonly Busy[]): Promise<boolean> {
  const { node, type, id } = parseUpid(upid);
  if (busy.some((one) => one.upid === upid)) return true;
  if (type !== "vzclone") return busy.some(({ vmid }) => vmid === Number(id));
  return (await slots.holders(slotOf.replica(node, Number(id)))).length > 0;
}

function slotsOf({ inventory }: WorkerContext, upid: Upid): string[] {
  const { node, type, id } = parseUpid(upid);
  if (type !== "vzclone") return [slotOf.node(node)];
  const source = inventory.current().replicas.find((one) => one.node === node && one.vmid === Number(id));
  return [
    slotOf.node(node),
    slotOf.replica(node, Number(id)),
    ...(source?.shared ? [slotOf.storage(source.storage)] : []),
  ];
}
