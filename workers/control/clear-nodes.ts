/** Nodes that were forgotten: what is kept of them by name goes once they have left the cluster and nobody can ask about them. */
import { NodeName } from "../../shared/ids.ts";
import { execQueue, nodeQueue } from "../../shared/queues.ts";
import { listPlaced } from "../../shared/state/standing.ts";
import type { WorkerContext } from "../context.ts";

export async function clearForgottenNodes(context: WorkerContext, now = Date.now()): Promise<void> {
  const { redis, keys, config, inventory, log } = context;
  // Sandboxes that were lost with a node can be destroyed while their records are kept, through its queue.
  const due = await redis.zrangebyscore(keys.nodesForgotten, "-inf", now - config.FLEET_RETENTION_HOURS * 3_600_000);
  for (const node of due.map((name) => NodeName.parse(name))) {
    const known = inventory.current().nodes.find(({ name }) => name === node);
    if (known?.online) await redis.zrem(keys.nodesForgotten, node); // it is back
    if (known || (await isNeeded(context, node))) continue;
    // First workers let go of its queues, at their next look at the cluster.
    if ((await redis.srem(keys.nodes, node)) === 1) continue;
    await clear(context, node);
    log.info({ node }, "node has left the cluster: nothing is kept of it any more");
  }
}

async function isNeeded({ redis, keys, queues }: WorkerContext, node: NodeName): Promise<boolean> {
  if ((await listPlaced(redis, keys)).some((one) => one.node === node)) return true;
  const open = await Promise.all(
    [nodeQueue(node), execQueue(node)].map((name) =>
      queues.get(name).getJobCountByTypes("waiting", "prioritized", "active", "delayed"),
    ),
  );
  return open.some((count) => count > 0);
}

async function clear({ redis, keys, queues }: WorkerContext, node: NodeName): Promise<void> {
  for (const name of [nodeQueue(node), execQueue(node)]) await queues.get(name).obliterate({ force: true });
  const byNode = [
    keys.cordons,
    keys.breakers,
    keys.nodeSettings,
    keys.reservedChanges,
    keys.adopted,
    keys.boots,
    keys.nodesSeen,
  ];
  const step = redis.multi();
  for (const key of byNode) step.hdel(key, node);
  step.del(keys.reserved(node));
  await step.zrem(keys.nodesForgotten, node).exec();
}
