/** What each node has to do, from its queue and its reservations, and what stands in its way. */
import { nodeQueue } from "../../shared/queues.ts";
import type { WorkerContext } from "../context.ts";
import type { NodeLoad } from "./capacity.ts";
import type { NodeFacts } from "./choose-node.ts";

/** A reading this young will do for saying no: a long line must not cost a reading each. */
const YOUNG_MS = 50;

const readings = new WeakMap<WorkerContext, { facts: NodeFacts; at: number }>();

/** `young`: read within the last 50 ms, or just now; `now`: just now. */
export async function factsOf(
  context: WorkerContext,
  want: "young" | "now",
): Promise<{ facts: NodeFacts; now: boolean }> {
  const known = readings.get(context);
  if (want === "young" && known && performance.now() - known.at < YOUNG_MS) return { facts: known.facts, now: false };
  const [loads, obstacles] = await Promise.all([readLoads(context), context.nodes.readObstacles()]);
  const facts = { loads, obstacles };
  readings.set(context, { facts, at: performance.now() });
  return { facts, now: true };
}

/** Something has changed: the next one reads. */
export function forgetFacts(context: WorkerContext): void {
  readings.delete(context);
}

async function readLoads(context: WorkerContext): Promise<NodeFacts["loads"]> {
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
