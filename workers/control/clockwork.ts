/** The fleet's own recurring work, as jobs of `control`: each kind runs once at a time over all workers. */
import { Queue, Worker } from "bullmq";
import type { NodeName } from "../../shared/ids.ts";
import { CONTROL, execQueue, nodeQueue, PLACE } from "../../shared/queues.ts";
import { isConnectionError } from "../../shared/redis/connect.ts";
import { createApiKeyStore } from "../../shared/state/api-keys.ts";
import { createEventGroupStore } from "../../shared/state/event-groups.ts";
import { publishSettings } from "../../shared/state/ttl.ts";
import type { WorkerContext } from "../context.ts";
import type { LiveInventory } from "../inventory/source.ts";
import { retireWebhooks } from "../webhooks/retire.ts";
import { admitWaiting } from "./admit.ts";
import { closeAbandoned, settleBatches } from "./batches.ts";
import { settleBranches } from "./branches.ts";
import { clearForgottenNodes } from "./clear-nodes.ts";
import { runErrands } from "./errands.ts";
import { startEvery } from "./every.ts";
import { evictFromBadNodes } from "./evict.ts";
import { expireSnapshots } from "./expire-snapshots.ts";
import { restIdle } from "./idle.ts";
import { withLock } from "./lock.ts";
import { tendPools } from "./pools.ts";
import { reapSlots } from "./reap-slots.ts";
import { restamp } from "./restamp.ts";
import { retireReplicas } from "./retire-replicas.ts";
import { retireTemplates } from "./retire-templates.ts";
import { reconcile } from "./round.ts";
import { sweepOperations } from "./sweep.ts";

interface Task {
  everyMs: number;
  run(context: WorkerContext, signal: AbortSignal): Promise<unknown>;
}

const TASKS = {
  expire: {
    everyMs: 1_000,
    run: async (context) => {
      await expireSnapshots(context);
      await restIdle(context);
    },
  },
  batch: {
    everyMs: 1_000,
    run: async (context, signal) => {
      await settleBatches(context, signal);
      await settleBranches(context);
      await retireTemplates(context);
      await retireReplicas(context);
    },
  },
  admit: { everyMs: 1_000, run: admitWaiting },
  sweep: {
    everyMs: 3_000,
    run: async (context, signal) => {
      await evictFromBadNodes(context);
      await sweepOperations(context, signal);
    },
  },
  reap: { everyMs: 5_000, run: reapSlots },
  reconcile: { everyMs: 5_000, run: (context, signal) => reconcile(context, { signal }) },
  errands: { everyMs: 1_000, run: runErrands },
  restamp: { everyMs: 2_000, run: restamp },
  pools: { everyMs: 2_000, run: tendPools },
  webhooks: { everyMs: 60_000, run: retireWebhooks },
  limits: {
    everyMs: 60_000,
    run: async (context) => {
      const { redis, keys, config, log } = context;
      await context.quotas.mend();
      await closeAbandoned(context);
      await clearForgottenNodes(context);
      await publishSettings(redis, keys, config);
      await assertLimits(context);
      await createApiKeyStore(redis, keys).forgetExpired(Date.now() - config.FLEET_RETENTION_HOURS * 3_600_000);
      const groups = await createEventGroupStore((run) => run(redis), keys).forgetUnused(GROUP_KEPT_MS);
      if (groups.length > 0) log.warn({ groups }, "consumer groups are forgotten that nobody used for 30 days");
    },
  },
} as const satisfies Record<string, Task>;

/** A consumer group that nobody used for so long is forgotten: 30 days. */
const GROUP_KEPT_MS = 2_592_000_000;

/** How often each process writes down that Redis is written to: on its own, since jobs of `control` may be lost or late. */
const BEAT_MS = 1_000;

/** How often each process looks for a newer inventory and whether the schedulers are still there. */
const LOOK_MS = 5_000;
const INVENTORY_MS = 10_000;

/** Global concurrency of every queue; somebody may have obliterated one, which deletes it. */
async function assertLimits(context: WorkerContext): Promise<void> {
  await assertPlaceLimit(context);
  for (const { name } of context.inventory.current().nodes) await assertNodeLimits(context, name);
}

export async function assertPlaceLimit({ queues }: WorkerContext): Promise<void> {
  await queues.get(PLACE).setGlobalConcurrency(1);
}

export async function assertNodeLimits({ config, queues }: WorkerContext, node: NodeName): Promise<void> {
  await queues.get(nodeQueue(node)).setGlobalConcurrency(config.FLEET_NODE_SLOTS);
  await queues.get(execQueue(node)).setGlobalConcurrency(config.FLEET_EXEC_SLOTS);
}

/** `works` false: only the inventory is followed, as a process without the role `worker` does. */
export async function startClockwork(
  context: WorkerContext,
  inventory: LiveInventory,
  { works }: { works: boolean },
): Promise<AsyncDisposable> {
  const { config, redis, keys, log } = context;
  const stop = new AbortController();
  const queue = new Queue(CONTROL, {
    connection: redis,
    prefix: config.FLEET_PREFIX,
    streams: { events: { maxLen: 1_000 } },
    defaultJobOptions: { removeOnComplete: { count: 20 }, removeOnFail: { count: 100 } },
  });
  queue.on("error", () => {}); // logged by the connection's owner; without a listener BullMQ prints it
  const schedule = async () => {
    for (const [name, { everyMs }] of Object.entries(TASKS))
      await queue.upsertJobScheduler(name, { every: everyMs }, { name });
  };
  if (works) await schedule();
  const worker = new Worker(
    CONTROL,
    async (job) => {
      const task: Task | undefined = Object.entries(TASKS).find(([name]) => name === job.name)?.[1];
      if (!task) return;
      // BullMQ gives a stalled job to another worker, and a slow one is not done when its next turn comes.
      await withLock(redis, `${keys.prefix}:control-lock:${job.name}`, () => task.run(context, stop.signal));
    },
    {
      connection: redis,
      prefix: config.FLEET_PREFIX,
      autorun: works,
      concurrency: Object.keys(TASKS).length,
      drainDelay: 1,
      stalledInterval: 5_000,
    },
  );
  // An outage of Redis is told by the connection that all queues share.
  worker.on("error", (error) =>
    log[isConnectionError(error) ? "debug" : "warn"]({ queue: CONTROL, err: error }, "queue worker error"),
  );
  worker.on("failed", (job, error) => log.warn({ task: job?.name, err: error }, "control task failed; it runs again"));

  const beat = () => context.strays.beat();
  const tellBeat = (error: unknown) => {
    if (!stop.signal.aborted) log.warn({ err: error }, "could not write the beat");
  };
  if (works) beat().catch(tellBeat);
  const pulse = works ? startEvery(BEAT_MS, beat, tellBeat) : undefined;

  const look = async () => {
    await context.nodes.readObstacles(); // the message of a change may have been lost
    await inventory.update(INVENTORY_MS, AbortSignal.any([stop.signal, AbortSignal.timeout(30_000)]));
    if (works && (await queue.getJobSchedulersCount()) < Object.keys(TASKS).length) await schedule();
  };
  const looking = startEvery(LOOK_MS, look, (error) => log.warn({ err: error }, "could not read the cluster"));

  return {
    async [Symbol.asyncDispose]() {
      looking[Symbol.dispose]();
      pulse?.[Symbol.dispose]();
      stop.abort(new Error("closing"));
      await worker.close();
      await queue.close();
    },
  };
}
