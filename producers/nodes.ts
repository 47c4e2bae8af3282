/** The nodes of the cluster as the fleet sees them. */
import { execQueue, nodeQueue } from "../shared/queues.ts";
import { loadInventory, type NodeInventory } from "../shared/state/inventory.ts";
import { slotOf } from "../shared/state/slots.ts";
import type { Parts } from "./parts.ts";

export interface QueueCounts {
  active: number;
  /** Ready to run, and those that try again later. */
  waiting: number;
  delayed: number;
}

export interface NodeView extends NodeInventory {
  /** Slots that are taken: heavy PVE operations that run now. */
  slotsTaken: number;
  queues: { node: QueueCounts; exec: QueueCounts };
}

/** Empty before any worker has written what it found. */
export async function loadNodes(parts: Parts): Promise<NodeView[]> {
  const inventory = await parts.link.request((redis) => loadInventory(redis, parts.keys));
  const nodes = inventory?.nodes ?? [];
  const taken = await parts.link.request(() => parts.slots.taken(nodes.map(({ name }) => slotOf.node(name))));
  return Promise.all(
    nodes.map(async (node, index) => ({
      ...node,
      slotsTaken: taken[index] ?? 0,
      queues: {
        node: await countJobs(parts, nodeQueue(node.name)),
        exec: await countJobs(parts, execQueue(node.name)),
      },
    })),
  );
}

async function countJobs(parts: Parts, queue: string): Promise<QueueCounts> {
  const counts = await parts.link.request(() =>
    parts.queues.get(queue).getJobCounts("active", "waiting", "prioritized", "delayed"),
  );
  const count = (state: string) => counts[state] ?? 0;
  return { active: count("active"), waiting: count("waiting") + count("prioritized"), delayed: count("delayed") };
}
