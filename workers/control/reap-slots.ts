/** Slots whose holder has gone: given back once PVE shows that nothing of it runs any more. */
import { FleetError, toFleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { isEnded } from "../../shared/state/records.ts";
import { type Holder, isTaskHolder, slotOf, taskOf } from "../../shared/state/slots.ts";
import type { WorkerContext } from "../context.ts";
import { Upid } from "../pve/upid.ts";
import { isOurs, isRunning, LIST_LIMIT } from "./adopt-node.ts";

export async function reapSlots(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const silent = new Set<NodeName | null>();
  for (const { name, node } of slotsOf(context.inventory.current())) {
    for (const holder of await context.slots.expired(name)) {
      if (silent.has(node)) break;
      try {
        if (!(await hasEnded(context, holder, node, signal))) continue;
        context.log.warn({ slot: name, holder }, "slot of an ended operation or task given back");
        await context.slots.reap(name, holder);
      } catch (error) {
        signal.throwIfAborted();
        const { code, facts } = toFleetError(error);
        context.log.debug(
          { ...facts, slot: name, holder, code },
          "could not see yet whether a slot's holder has ended",
        );
        silent.add(node); // it must not keep those of the others
      }
    }
  }
}

/** All that there may be. A storage's belong to no node: clones onto it may run on any. */
export function slotsOf({ nodes, replicas }: Inventory): { name: string; node: NodeName | null }[] {
  const shared = nodes.flatMap(({ storages }) => storages.filter((one) => one.shared).map(({ name }) => name));
  return [
    ...nodes.map(({ name }) => ({ name: slotOf.node(name), node: name })),
    ...replicas.map(({ node, vmid }) => ({ name: slotOf.replica(node, vmid), node })),
    ...[...new Set(shared)].map((storage) => ({ name: slotOf.storage(storage), node: null })),
  ];
}

async function hasEnded(context: WorkerContext, holder: Holder, node: NodeName | null, signal: AbortSignal) {
  if (isTaskHolder(holder)) return hasTaskEnded(context, Upid.parse(taskOf(holder)), signal);
  const operation = await context.store.load(holder);
  // An open operation has it for good: the run that takes it over goes on with it, and its end gives it back.
  if (operation && !isEnded(operation.status)) return false;
  const { nodes } = context.inventory.current();
  const places = node === null ? nodes.filter(({ online }) => online).map(({ name }) => name) : [node];
  for (const place of places) if (await hasRunningTasks(context, place, signal, node === null)) return false;
  return true;
}

/** A task that PVE does not know any more has ended, too. */
async function hasTaskEnded({ pve }: WorkerContext, upid: Upid, signal: AbortSignal): Promise<boolean> {
  try {
    return (await pve.tasks.status(upid, { signal })).status === "stopped";
  } catch (error) {
    if (error instanceof FleetError && error.code === "task_lost") return true;
    throw error;
  }
}

/** Without the operation's record we can't tell its task from others of ours: any running one keeps the slot. */
async function hasRunningTasks(
  context: WorkerContext,
  node: NodeName,
  signal: AbortSignal,
  clonesOnly: boolean,
): Promise<boolean> {
  const tasks = await context.pve.tasks.list(node, { source: "active", limit: LIST_LIMIT }, { signal });
  return tasks.some(
    (task) => isRunning(task) && (!clonesOnly || task.type === "vzclone") && isOurs(task.upid as Upid, context.config), // PVE's own
  );
}
