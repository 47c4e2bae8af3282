/** The placer: gives the operations of `place` a node, one at a time, in their order, only when a slot is near free. */
import { FleetError } from "../../shared/errors.ts";
import { SnapshotId } from "../../shared/ids.ts";
import { checkRanges } from "../../shared/jobs/check-ranges.ts";
import { nodeQueue } from "../../shared/queues.ts";
import type { WorkerContext } from "../context.ts";
import { Reroute } from "../handlers/handler.ts";
import { NotYet } from "../run/process-operation.ts";
import type { Run } from "../run/run.ts";
import { chooseNode, type NodeLoad, type Placement, withDefaults } from "./choose-node.ts";

/** How long the placer sleeps when nothing wakes it. */
const POLL_MS = 200;
/** How long an operation steps aside that only waits for something others do not need. */
const LET_OTHERS_PASS_MS = 500;

/** Throws `Reroute` to the node's queue, `NotYet` when all are busy, or what will not heal. */
export async function place(run: Run<"provision">): Promise<never> {
  const placement = await choose(run);
  if ("wait" in placement) {
    if (run.operation.waitingFor !== placement.reason) await run.write({ operation: { waitingFor: placement.reason } });
    if (placement.blocked) throw new NotYet(LET_OTHERS_PASS_MS);
    await run.context.wake.next(["free", "ended", "abort"], { timeoutMs: POLL_MS, signal: run.signal });
    run.check();
    throw new NotYet(0);
  }
  const { node, demand } = placement;
  const { keys } = run.context;
  throw new Reroute(nodeQueue(node), {
    placed: true,
    sandbox: { node, state: "placing" },
    operation: { waitingFor: null },
    also: [
      ...run.context.inventory.current().nodes.map(({ name }) => ["HDEL", keys.reserved(name), run.sandbox.id]),
      ["HSET", keys.reserved(node), run.sandbox.id, `${demand.memoryMib} ${demand.diskGib}`],
    ],
  });
}

async function choose(run: Run<"provision">): Promise<Placement> {
  const { context } = run;
  const input = withDefaults(run.input, context.config);
  const wanted = SnapshotId.safeParse(input.template);
  const snapshot = wanted.success ? await context.store.loadSnapshot(wanted.data) : null;
  if (wanted.success && (!snapshot || snapshot.team !== run.operation.team)) {
    throw new FleetError("snapshot_not_found", `there is no snapshot ${wanted.data}`, {
      facts: { snapshot: wanted.data },
    });
  }
  const limits = {
    slots: context.config.FLEET_NODE_SLOTS,
    memoryOvercommit: context.config.FLEET_MEMORY_OVERCOMMIT,
    diskOvercommit: context.config.FLEET_DISK_OVERCOMMIT,
    allowPrivileged: context.config.PVE_ALLOW_PRIVILEGED,
  };
  const decideOn = async () => {
    const inventory = context.inventory.current();
    checkRanges(input, inventory.nodes);
    return chooseNode({ input, snapshot }, inventory, await loadsOf(context), limits);
  };
  try {
    return await decideOn();
  } catch (error) {
    if (!(error instanceof FleetError) || error.code !== "template_not_found") throw error;
    await context.inventory.refresh(run.signal); // it may be younger than what we know
    return decideOn();
  }
}

/** What each node has to do, from its queue and its reservations. */
async function loadsOf(context: WorkerContext): Promise<Map<string, NodeLoad>> {
  const { nodes } = context.inventory.current();
  const loads = await Promise.all(
    nodes.map(async ({ name }): Promise<[string, NodeLoad]> => {
      const [jobs, reserved] = await Promise.all([
        context.queues.get(nodeQueue(name)).getJobCountByTypes("waiting", "prioritized", "active"),
        context.redis.hvals(context.keys.reserved(name)),
      ]);
      const load = { jobs, reservedMemoryMib: 0, reservedDiskGib: 0 };
      for (const one of reserved) {
        const [memory = 0, disk = 0] = one.split(" ").map(Number);
        load.reservedMemoryMib += memory;
        load.reservedDiskGib += disk;
      }
      return [name, load];
    }),
  );
  return new Map(loads);
}
