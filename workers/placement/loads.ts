/** What each node has to do, from its queue and its reservations. */
import { nodeQueue, PLACE } from "../../shared/queues.ts";
import type { WorkerContext } from "../context.ts";
import type { NodeLoad } from "./capacity.ts";

/** A reading this young will do for saying no: a long line must not cost a reading each. */
const YOUNG_MS = 50;

interface Loads {
  nodes: ReadonlyMap<string, NodeLoad>;
  /** Operations that wait to be placed, those that stand aside apart. */
  line: number;
}

const readings = new WeakMap<WorkerContext, { at: number; loads: Loads }>();

/** `young`: read within the last 50 ms, or just now; `now`: just now. */
export async function loadsOf(context: WorkerContext, want: "young" | "now"): Promise<{ loads: Loads; now: boolean }> {
  const known = readings.get(context);
  if (want === "young" && known && performance.now() - known.at < YOUNG_MS) return { loads: known.loads, now: false };
  const loads = await readLoads(context);
  readings.set(context, { at: performance.now(), loads });
  return { loads, now: true };
}

/** Something has changed: the next one reads. */
export function forgetLoads(context: WorkerContext): void {
  readings.delete(context);
}

async function readLoads(context: WorkerContext): Promise<Loads> {
  const { nodes } = context.inventory.current();
  const line = context.queues.get(PLACE).getJobCountByTypes("waiting", "prioritized");
  const loads = Promise.all(
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
  const [waiting, known] = await Promise.all([line, loads]);
  return { nodes: new Map(known), line: waiting };
}
