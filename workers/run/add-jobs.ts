/** Jobs of operations that may go: added to their queues, and where they stand in the line of `place`. */
import { FleetError } from "../../shared/errors.ts";
import type { OperationId } from "../../shared/ids.ts";
import { PLACE } from "../../shared/queues.ts";
import { isEnded, type OperationRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";

/** Adds the jobs of operations that may go now. What a crash leaves out, the sweeper adds. */
export async function addReleased(
  context: WorkerContext,
  released: readonly OperationId[],
  seat?: number,
): Promise<void> {
  for (const id of released) {
    const operation = await context.store.load(id).catch((error: unknown) => {
      // One of a newer version is for the sweeper of a newer worker; what was just done here is done.
      if (!(error instanceof FleetError) || error.code !== "internal") throw error;
      context.log.warn({ operation: id, problem: error.text }, "could not read an operation that may go");
      return null;
    });
    if (!operation || isEnded(operation.status)) continue;
    await addJob(context, operation);
    if (operation.queue === PLACE && operation.givesWay !== undefined && operation.givesWay <= 0)
      await goNext(context, operation);
    if (seat === undefined || operation.queue !== PLACE || Math.floor(seat / SEATS) !== operation.priority) continue;
    await context.redis.zadd(placeLine(context), "XX", seat, operation.job);
  }
}

/** Before interactive work, and it stays there when it finds no slot free. */
async function goNext({ queues }: WorkerContext, { job }: OperationRecord): Promise<void> {
  const waiting = await queues.get(PLACE).getJob(job);
  await waiting?.changePriority({ priority: 1, lifo: true });
}

/** A job's score in BullMQ: its priority, then a counter of 32 bits. */
const SEATS = 2 ** 32;
/** Where a job of `place` stands in its line; by itself the first of its lane. */
export const seatOf = (priority: number) => priority * SEATS;
const placeLine = ({ keys }: WorkerContext) => `${keys.prefix}:${PLACE}:prioritized`;

/** Where a job stands in the line of `place`; undefined when it does not. */
export async function findSeat(context: WorkerContext, { queue, job }: OperationRecord): Promise<number | undefined> {
  const seat = queue === PLACE ? await context.redis.zscore(placeLine(context), job) : null;
  return seat === null ? undefined : Number(seat);
}

export async function addJob(context: WorkerContext, operation: OperationRecord, delayMs = 0): Promise<void> {
  const { id, kind, queue, job, priority, sandbox, team, trace } = operation;
  await context.queues.add(queue, {
    id: job,
    kind,
    priority: queue === PLACE ? priority : 0,
    data: { operation: id, sandbox, team },
    delayMs,
    trace,
  });
}
