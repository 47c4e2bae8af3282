/** Queue names and options. Every Queue of ours comes from here: one made without these options resets them for all. */
import { type JobsOptions, Queue } from "bullmq";
import type { OperationId, SandboxId, TeamId } from "./ids.ts";
import type { JobName } from "./jobs/index.ts";
import type { RedisConnection } from "./redis/connect.ts";
import type { WebhookJob } from "./webhooks.ts";

export const PLACE = "place";
/** Provisions that a pool may serve at once. */
export const WARM = "warm";
export const CONTROL = "control";
export const nodeQueue = (node: string): string => `node-${node}`;
export const execQueue = (node: string): string => `exec-${node}`;
export const webhookQueue = (target: string): string => `webhook-${target}`;

/** What a job carries: ids for the board. Everything else, secrets first, is in the operation's record. */
export interface JobData {
  operation: OperationId;
  sandbox: SandboxId;
  team: TeamId;
}

/** A BullMQ lock lives this long; each run renews it itself (BullMQ's renewal breaks when a process takes a job again). */
export const LOCK_MS = 6_000;

export const JOB_OPTIONS: JobsOptions = {
  // The run decides about retries and their delay (see workers/run/decide.ts); BullMQ must never end a job by count.
  attempts: 1_000_000,
  backoff: { type: "custom" },
  // For the board alone: results are in records. In each queue, of which a node has two.
  removeOnComplete: { age: 86_400, count: 1_000 },
  removeOnFail: { age: 86_400, count: 1_000 },
};

/** Of a queue's own events, which nothing of ours reads. */
export const EVENTS_KEPT = 1_000;

export type FleetQueue = Queue<JobData, unknown, JobName | string>;
export type WebhookQueue = Queue<WebhookJob, unknown, string>;

export interface NewJob {
  id: string;
  kind: JobName;
  priority: number;
  data: JobData;
  delayMs?: number;
  /** The trace that its run belongs to, see `currentTrace`. */
  trace?: string | undefined;
}

export interface Queues {
  get(name: string): FleetQueue;
  /** Deliveries to a target. */
  webhook(target: string): WebhookQueue;
  /** Adds an operation's job, to run after `delayMs`; adding one that is there already changes nothing. */
  add(queue: string, job: NewJob): Promise<void>;
  /** The same for many, in one step a queue. */
  addAll(jobs: readonly (NewJob & { queue: string })[]): Promise<void>;
  close(): Promise<void>;
}

const toJobOptions = ({ id, priority, delayMs = 0, trace }: NewJob): JobsOptions => ({
  jobId: id,
  ...(priority > 0 ? { priority } : {}),
  ...(delayMs > 0 ? { delay: delayMs } : {}),
  ...(trace === undefined ? {} : { telemetry: { metadata: trace } }),
});

export function createQueues(redis: RedisConnection, prefix: string): Queues {
  const queues = new Map<string, Queue>();
  const open = (name: string): Queue => {
    const known = queues.get(name);
    if (known) return known;
    const queue: Queue = new Queue(name, {
      connection: redis,
      prefix,
      defaultJobOptions: JOB_OPTIONS,
      streams: { events: { maxLen: EVENTS_KEPT } },
      skipVersionCheck: true,
      skipWaitingForReady: true,
    });
    // The connection's owner hears of its errors; a Queue without a listener prints each one, a caller's terminal included.
    queue.on("error", () => {});
    queues.set(name, queue);
    return queue;
  };
  // What a queue holds follows from its name.
  const get = (name: string): FleetQueue => open(name);
  return {
    get,
    webhook: (target) => open(webhookQueue(target)),
    async add(queue, job) {
      await get(queue).add(job.kind, job.data, toJobOptions(job));
    },
    async addAll(jobs) {
      const names = [...new Set(jobs.map(({ queue }) => queue))];
      await Promise.all(
        names.map((name) => {
          const some = jobs.filter(({ queue }) => queue === name);
          return get(name).addBulk(some.map((job) => ({ name: job.kind, data: job.data, opts: toJobOptions(job) })));
        }),
      );
    },
    async close() {
      await Promise.all([...queues.values()].map((queue) => queue.close()));
      queues.clear();
    },
  };
}
