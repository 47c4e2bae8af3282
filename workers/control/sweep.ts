/**
 * The sweeper: holds open operations against their jobs, so that every accepted operation ends, whatever happened to its job
 * (a crash between record and add, an obliterated queue, a removal by hand, a failure without a run).
 */
import { FleetError } from "../../shared/errors.ts";
import type { OperationId } from "../../shared/ids.ts";
import type { InNeed, OpenPage } from "../../shared/state/operations.ts";
import { isEnded, type OperationRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { addJob, addReleased } from "../run/add-jobs.ts";
import { endWithoutRun } from "./aborts.ts";
import { forEachRecord } from "./for-each-record.ts";

/** Younger operations may just be on their way from record to job. */
const GRACE_MS = 3_000;

/** One round over all open operations. Returns how many needed help. */
export async function sweepOperations(context: WorkerContext, signal: AbortSignal): Promise<number> {
  const { store } = context;
  await addReleased(context, await store.mendTurns());
  let helped = 0;
  const until = Date.now() - GRACE_MS;
  for (let from: OpenPage | undefined; ; ) {
    signal.throwIfAborted();
    const { found, next } = await store.inspect(until, from);
    await forEachRecord(context, found, async ({ id, state }) => {
      helped += Number(await help(context, id, state));
    });
    if (next === undefined) return helped;
    from = next;
  }
}

async function help(context: WorkerContext, id: OperationId, state: InNeed["state"]): Promise<boolean> {
  const operation = await context.store.load(id);
  if (!operation || isEnded(operation.status)) return false;
  if (state === "parked") return expireParked(context, operation);
  const job = await context.queues.get(operation.queue).getJob(operation.job);
  const ended = job !== undefined && ((await job.isCompleted()) || (await job.isFailed()));
  if (job && !ended) return false; // it has come since we looked
  await job?.remove();
  context.log.warn(
    { operation: id, job: operation.job, queue: operation.queue },
    "operation had lost its job; added again",
  );
  await addJob(context, operation);
  return true;
}

/** An exec that waits for its sandbox to come up, or for a quota, does so no longer than its own time limit. */
async function expireParked(context: WorkerContext, operation: OperationRecord): Promise<boolean> {
  const { input } = operation;
  const timeoutMs =
    typeof input === "object" && input !== null && "timeoutMs" in input
      ? Number(input.timeoutMs)
      : Number.POSITIVE_INFINITY;
  if (operation.kind !== "exec" || Date.now() - operation.acceptedAt < timeoutMs) return false;
  const { quota, team, sandbox, waitingFor = "" } = operation;
  const error =
    quota === undefined
      ? new FleetError("not_ready", `sandbox ${sandbox} was not up within ${timeoutMs} ms`, { facts: { sandbox } })
      : new FleetError("quota_exceeded", `no room within ${timeoutMs} ms (${waitingFor})`, { facts: { team, quota } });
  await endWithoutRun(context, operation.id, error);
  return true;
}
