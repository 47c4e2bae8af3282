/**
 * Webhooks: of each target a consumer group follows the events and puts them into the target's queue, which delivers them. A
 * queue a target, so that none waits for another's outage.
 */
import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as pause } from "node:timers/promises";
import { Worker } from "bullmq";
import type { WebhookTarget } from "../../shared/config-webhooks.ts";
import { FleetError, toFleetError } from "../../shared/errors.ts";
import { LOCK_MS, webhookQueue } from "../../shared/queues.ts";
import { connectRedis, isConnectionError } from "../../shared/redis/connect.ts";
import { consumeEvents } from "../../shared/state/consume-events.ts";
import { createEventGroupStore } from "../../shared/state/event-groups.ts";
import { openEventReader } from "../../shared/state/event-reader.ts";
import { publishTargets, webhookGroup } from "../../shared/state/webhooks.ts";
import { toEventJob, type WebhookJob } from "../../shared/webhooks.ts";
import type { WorkerContext } from "../context.ts";
import { startEvery } from "../control/every.ts";
import { deliver, toRetryMs } from "./deliver.ts";
import { createAgent, LANES } from "./reach.ts";

/** How often each process tells which targets it has. */
const PUBLISH_MS = 5_000;
/** Deliveries of a target that wait; more stay in the event stream, which is bounded. */
const BACKLOG = 10_000;
/** Events between two looks at the backlog. */
const LOOK_EVERY = 100;
/** What a consumer that died had in hand goes to another after so long. */
const CLAIM_MS = 10_000;
const REDIS_MS = 5_000;
const KEEP_DELIVERED = { count: 1_000, age: 86_400 };
/** How long dead letters are kept. */
export const DEAD_MS = 14 * 86_400_000;
const KEEP_DEAD = { count: 1_000, age: DEAD_MS / 1_000 };

/** Throws `not_configured` for a target that can't be reached as configured. */
export async function startWebhooks(context: WorkerContext): Promise<AsyncDisposable> {
  const { config, redis, keys, log } = context;
  const targets = config.FLEET_WEBHOOKS;
  await using stack = new AsyncDisposableStack();
  const publish = () => {
    const at = Date.now();
    const told = targets.map(({ name, url, team, types }) => ({ name, host: url.host, team, types, at }));
    return publishTargets(redis, keys, told);
  };
  for (const target of targets) stack.use(startDelivery(context, target));
  await publish();
  stack.use(
    startEvery(PUBLISH_MS, publish, (error) => log.debug({ err: error }, "could not tell the webhooks' targets")),
  );
  for (const target of targets) stack.use(await startFollowing(context, target));
  return stack.move();
}

function startDelivery({ config, redis, log }: WorkerContext, target: WebhookTarget): AsyncDisposable {
  const agent = createAgent(target);
  const queue = webhookQueue(target.name);
  const worker = new Worker<WebhookJob>(queue, (job) => deliver(target, agent, job.data), {
    connection: redis,
    prefix: config.FLEET_PREFIX,
    concurrency: LANES,
    lockDuration: LOCK_MS,
    stalledInterval: 2_000,
    // A delivery that killed its worker is tried again; what counts is the receiver's answers.
    maxStalledCount: 1_000_000,
    drainDelay: 1,
    settings: { backoffStrategy: (attempt, _type, error) => toRetryMs(error, attempt, Math.random()) },
  });
  worker.on("error", (error) =>
    log[isConnectionError(error) ? "debug" : "warn"]({ queue, err: error }, "queue worker error"),
  );
  worker.on("failed", (job, thrown) => {
    const { code, text } = toFleetError(thrown);
    const about = { target: target.name, message: job?.data.id, attempt: job?.attemptsMade, code, text };
    if (job?.finishedOn === undefined) log.debug(about, "a webhook was not delivered yet");
    else log.warn(about, "a webhook was given up; see fleet webhooks dead");
  });
  return {
    async [Symbol.asyncDispose]() {
      await worker.close(); // once what is under way has its answer
      await agent.destroy();
    },
  };
}

/** Resolves once the target gets what happens from then on. */
async function startFollowing(context: WorkerContext, target: WebhookTarget): Promise<AsyncDisposable> {
  const { redis, keys } = context;
  await createEventGroupStore((run) => run(redis), keys).open(webhookGroup(target.name), "$");
  const stop = new AbortController();
  const ended = follow(context, target, stop.signal);
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended;
    },
  };
}

/** Goes on where the group was, whoever was there. */
async function follow(context: WorkerContext, target: WebhookTarget, signal: AbortSignal): Promise<void> {
  const { config, redis, keys, log } = context;
  const group = webhookGroup(target.name);
  const store = createEventGroupStore((run) => answered(run(redis)), keys);
  const consumer = `${hostname()}-${randomBytes(6).toString("hex")}`;
  while (!signal.aborted) {
    const blocking = connectRedis(config.REDIS_URL);
    blocking.on("error", (error) => log.debug({ err: error }, "redis connection"));
    const reader = openEventReader(blocking, keys);
    const onStop = () => void reader.close();
    signal.addEventListener("abort", onStop, { once: true });
    try {
      await store.open(group, "$");
      const { team, types } = target;
      const work = { group, consumer, filter: { team, types }, claimAfterMs: CLAIM_MS, attempts: 1_000_000 };
      await consumeEvents({ store, reader, signal }, { ...work, ...createSink(context, target, signal) });
    } catch (error) {
      if (!signal.aborted)
        log.warn({ target: target.name, err: error }, "could not follow the events for a webhook; again");
      await pause(1_000, undefined, { signal }).catch(() => {});
    } finally {
      signal.removeEventListener("abort", onStop);
      await reader.close();
    }
  }
}

/** What waits through an outage would hold up the end of the process. */
async function answered<T>(asked: Promise<T>): Promise<T> {
  const { promise: expired, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new FleetError("redis_unavailable", "Redis does not answer")), REDIS_MS);
  try {
    return await Promise.race([asked, expired]);
  } finally {
    clearTimeout(timer);
    asked.catch(() => {}); // may still fail later, when nobody waits for it any more
  }
}

/** Where the events of a target go. An event's job has its id, so that one that comes twice is there once. */
function createSink({ queues, log }: WorkerContext, target: WebhookTarget, signal: AbortSignal) {
  const queue = queues.webhook(target.name);
  let added = 0;
  const add = (job: WebhookJob) =>
    queue.add(job.message.type, job, {
      jobId: job.id,
      attempts: target.attempts,
      removeOnComplete: KEEP_DELIVERED,
      removeOnFail: KEEP_DEAD,
    });
  const room = async () => {
    while ((await queue.getJobCountByTypes("waiting", "delayed")) >= BACKLOG) await pause(1_000, undefined, { signal });
  };
  return {
    async handle(event: Parameters<typeof toEventJob>[0]) {
      if (added++ % LOOK_EVERY === 0) await room();
      await add(toEventJob(event));
    },
    /** The receiver is told, so that it can look at what it follows. */
    async onMissed({ facts }: { facts: Record<string, unknown> }) {
      log.warn({ target: target.name, ...facts }, "events were removed before they were on their way to a webhook");
      const { after, oldest = null } = facts;
      const data = { after: String(after), oldest: oldest === null ? null : String(oldest) };
      const timestamp = new Date().toISOString();
      await add({ id: `missed_${data.after}`, message: { type: "webhook.missed", timestamp, data } });
    },
  };
}
