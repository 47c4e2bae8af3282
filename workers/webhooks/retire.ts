/** Targets that are no longer configured anywhere: what still waits for them is given up, and stays in sight for a while. */
import { setTimeout as pause } from "node:timers/promises";
import { UnrecoverableError, Worker } from "bullmq";
import { LOCK_MS, webhookQueue } from "../../shared/queues.ts";
import { createEventGroupStore } from "../../shared/state/event-groups.ts";
import { forgetTarget, loadTargets, webhookGroup } from "../../shared/state/webhooks.ts";
import type { WorkerContext } from "../context.ts";
import { DEAD_MS } from "./webhooks.ts";

/** After so long without a worker that knows it a target is none: not at once, since workers restart one by one. */
const RETIRE_MS = 600_000;
/** More than a queue keeps. */
const ALL = 10_000;

export async function retireWebhooks(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const { redis, keys, queues, log } = context;
  const published = await loadTargets(redis, keys);
  for (const { name } of published.filter(({ at }) => Date.now() - at > RETIRE_MS)) {
    const queue = queues.webhook(name);
    // First, so that nothing follows: the group of a target that comes back begins anew.
    if (await createEventGroupStore((run) => run(redis), keys).remove(webhookGroup(name)))
      log.warn({ target: name }, "a webhook's target is in no worker's configuration any more");
    if ((await queue.getJobCountByTypes("waiting", "active", "delayed")) > 0) await giveUpAll(context, name, signal);
    // BullMQ itself looks at their age only when another one ends.
    await queue.clean(DEAD_MS, ALL, "failed");
    if ((await queue.getFailedCount()) > 0) continue;
    await queue.clean(0, ALL, "completed");
    await forgetTarget(redis, keys, name);
  }
}

/** By a worker of its own, since BullMQ ends only jobs that somebody has taken. */
async function giveUpAll({ config, redis, queues }: WorkerContext, name: string, signal: AbortSignal): Promise<void> {
  const queue = queues.webhook(name);
  const refuse = () => {
    throw new UnrecoverableError("webhook_not_found: the target is not configured any more");
  };
  const worker = new Worker(webhookQueue(name), refuse, {
    connection: redis,
    prefix: config.FLEET_PREFIX,
    concurrency: 50,
    lockDuration: LOCK_MS,
    stalledInterval: 1_000,
    drainDelay: 1,
  });
  worker.on("error", () => {}); // an outage of Redis is told by the connection that all queues share
  try {
    do {
      await queue.promoteJobs();
      await pause(100, undefined, { signal });
    } while ((await queue.getJobCountByTypes("waiting", "active", "delayed")) > 0);
  } finally {
    await worker.close();
  }
}
