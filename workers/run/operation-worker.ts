/** A BullMQ Worker with the fleet's settings, for one queue of operations. */
import { Worker } from "bullmq";
import { type JobData, LOCK_MS } from "../../shared/queues.ts";
import { isConnectionError } from "../../shared/redis/connect.ts";
import type { WorkerContext } from "../context.ts";
import { type HandlerOf, type LiveRuns, processOperation, RetryLater } from "./process-operation.ts";

export interface OperationWorkerOptions {
  queue: string;
  /** Jobs that this process takes at once. */
  concurrency: number;
  /** Whether operations wait to be placed into this queue: they are told when a job has left it. */
  placed: boolean;
  handlerOf: HandlerOf;
  live: LiveRuns;
}

export function startOperationWorker(context: WorkerContext, options: OperationWorkerOptions): Worker<JobData> {
  const { config, redis, keys, log } = context;
  const worker = new Worker<JobData>(
    options.queue,
    (job, token) => processOperation(context, job, token ?? "", options),
    {
      connection: redis,
      prefix: config.FLEET_PREFIX,
      concurrency: options.concurrency,
      ...(context.traces === null ? {} : { telemetry: context.traces.telemetry }),
      lockDuration: LOCK_MS,
      stalledInterval: 2_000,
      // Both limits fail a job without calling us; crashes are counted in the operation's record.
      maxStalledCount: 1_000_000,
      // Each run renews its own lock: BullMQ's renewal breaks when one process takes the same job again.
      skipLockRenewal: true,
      // Else a raised limit or a closing worker leaves a full queue idle for up to 5 s.
      drainDelay: 1,
      settings: { backoffStrategy: (_attempts, _type, error) => (error instanceof RetryLater ? error.delayMs : 1_000) },
    },
  );
  if (options.placed) {
    // Not at the operation's end: until BullMQ knows of it, the job still counts as one of the queue's.
    const tell = () => redis.publish(keys.wake, `left ${options.queue}`).catch(() => {}); // a lost one costs the placer its own limit
    worker.on("completed", tell).on("failed", tell);
  }
  // An outage of Redis is told by the connection that all queues share.
  worker.on("error", (error) =>
    log[isConnectionError(error) ? "debug" : "warn"]({ queue: options.queue, err: error }, "queue worker error"),
  );
  return worker;
}
