/** A BullMQ Worker with the fleet's settings, for one queue of operations. */
import { setImmediate } from "node:timers/promises";
import { type Job, type JobJson, raw2NextJobData, Worker, type WorkerOptions } from "bullmq";
import { type JobData, LOCK_MS } from "../../shared/queues.ts";
import { isConnectionError } from "../../shared/redis/connect.ts";
import { type ClaimedAhead, takeJob } from "../../shared/state/take.ts";
import type { WorkerContext } from "../context.ts";
import { type HandlerOf, type LiveRuns, processOperation, RetryLater } from "./process-operation.ts";

export interface OperationWorkerOptions {
  queue: string;
  /** Jobs that this process takes at once. */
  concurrency: number;
  /** Whether operations wait to be placed into this queue: they are told when a job has left it. */
  placed: boolean;
  /** Whether jobs are taken and their operations claimed in one step: for those that are over soon. */
  claimsAhead: boolean;
  handlerOf: HandlerOf;
  live: LiveRuns;
}

interface Setting {
  context: WorkerContext;
  options: OperationWorkerOptions;
}

/** BullMQ's, which may take jobs with their operations, and then does not look for more where there is none. */
class OperationWorker extends Worker<JobData> {
  readonly #setting: Setting;
  readonly #claims = new Map<string, ClaimedAhead>();
  #lastJob: string | undefined;

  constructor(setting: Setting, settings: WorkerOptions) {
    const { context, options } = setting;
    const process = (job: Job<JobData>, token = "") =>
      processOperation(context, job, token, { ...options, claimed: this.#claimOf(nameOf(job.id, token)) });
    super(options.queue, process, settings);
    this.#setting = setting;
  }

  protected override createBackend(): void {
    super.createBackend();
    const { backend } = this;
    const { moveToActive, waitForJob } = backend;
    backend.moveToActive = (token, name) =>
      this.#setting.options.claimsAhead ? this.#takeWithClaim(token) : moveToActive.call(backend, token, name);
    backend.waitForJob = async (timeoutSec) => {
      // The next one is waited for once this one's request is written: two turns of the event loop make a connection near by.
      if (this.#lastJob !== undefined) for (let turn = 0; turn < 2; turn++) await setImmediate();
      return waitForJob.call(backend, timeoutSec);
    };
  }

  protected override async nextJobFromJobData(data?: JobJson, id?: string, token?: string): Promise<Job<JobData>> {
    const job = await super.nextJobFromJobData(data, id, token);
    // As after a look that finds nothing: the worker waits for the next one to be added.
    if (id !== undefined && id === this.#lastJob) await super.nextJobFromJobData();
    return job;
  }

  async #takeWithClaim(token: string): Promise<unknown[]> {
    const { redis, keys } = this.#setting.context;
    const { job, id, claimed, isLast } = await takeJob(redis, keys, { queue: this.name, token });
    if (claimed) this.#claims.set(nameOf(id, token), claimed);
    this.#lastJob = isLast ? id : undefined;
    return raw2NextJobData(job);
  }

  #claimOf(name: string): ClaimedAhead | undefined {
    const claimed = this.#claims.get(name);
    this.#claims.delete(name);
    return claimed;
  }
}

/** A job taken with a token: that of a job that has ended may go on to the next one. */
const nameOf = (job: string | undefined, token: string) => `${job} ${token}`;

export function startOperationWorker(context: WorkerContext, options: OperationWorkerOptions): Worker<JobData> {
  const { config, redis, keys, log } = context;
  const worker = new OperationWorker(
    { context, options },
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
