/** A job's run from claim to end: the one place where outcomes become records, events, retries and BullMQ states. */
import { DelayedError, type Job, UnrecoverableError, WaitingError } from "bullmq";
import { FleetError, fromErrorRecord, toErrorRecord, toFleetError } from "../../shared/errors.ts";
import { newFence, type OperationId } from "../../shared/ids.ts";
import { type JobName, jobs } from "../../shared/jobs/index.ts";
import { type JobData, PLACE } from "../../shared/queues.ts";
import type { OperationEnd } from "../../shared/state/operations.ts";
import { isEnded, type OperationRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import type { Ending, Handler } from "../handlers/handler.ts";
import { Reroute } from "../handlers/handler.ts";
import { decide } from "./decide.ts";
import { type Run, startRun } from "./run.ts";

/** Runs cut short without a word (crashes, lost locks) before the operation is given up. */
const CRASHES_ALLOWED = 25;

/** Thrown to BullMQ; its backoff strategy reads the delay. */
export class RetryLater extends Error {
  override readonly name = "RetryLater";
  readonly delayMs: number;

  constructor(error: FleetError, delayMs: number) {
    super(error.message, { cause: error });
    this.delayMs = delayMs;
  }
}

/** Thrown by a placer that has no node to give yet: back into the waiting line at the place it had, at once or after a delay. */
export class NotYet extends Error {
  override readonly name = "NotYet";
  readonly delayMs: number;

  constructor(delayMs: number) {
    super("no node yet");
    this.delayMs = delayMs;
  }
}

export type LiveRuns = Set<Run>;
/** What BullMQ keeps as the job's result: for the board, never output or secrets. */
export type JobSummary = { outcome: "succeeded" | "replaced" | "failed" | "canceled" | "unknown"; queue?: string };

export type HandlerOf = (kind: JobName) => Handler<JobName>;

export async function processOperation(
  context: WorkerContext,
  job: Job<JobData>,
  token: string,
  options: { handlerOf: HandlerOf; live: LiveRuns },
): Promise<JobSummary> {
  const { store, config } = context;
  const id = job.data.operation;
  const jobId = job.id ?? id;
  const fence = newFence();
  const claimedAt = performance.now();
  const lockKey = `${config.FLEET_PREFIX}:${job.queueName}:${jobId}:lock`;
  const claim = await store.claim(id, fence, { job: jobId, lockKey, lockToken: token });
  if (claim.outcome === "unknown") return { outcome: "unknown" };
  if (claim.outcome === "stale") return { outcome: "replaced" };
  if (claim.outcome === "ended") return summaryOf(claim.operation);

  const kind = claim.operation.kind;
  await using run = startRun(context, job, token, {
    kind,
    fence,
    claimedAt,
    operation: claim.operation,
    sandbox: claim.sandbox,
  });
  options.live.add(run);
  try {
    return await conclude(run, options.handlerOf(kind), { job, token, fence });
  } finally {
    options.live.delete(run);
  }
}

interface Carrier {
  job: Job<JobData>;
  token: string;
  fence: string;
}

async function conclude(run: Run, handler: Handler<JobName>, carrier: Carrier): Promise<JobSummary> {
  const { operation } = run;
  try {
    if (operation.abort) throw fromErrorRecord(operation.abort);
    if (operation.claims - operation.attempts > CRASHES_ALLOWED) {
      throw new FleetError("internal", `gave up after ${operation.claims} runs that ended without a word`, {
        facts: { runs: operation.claims },
      });
    }
    const ending = await handler.run(run);
    await end(run, carrier, { status: "succeeded", result: ending.result }, ending);
    return { outcome: "succeeded" };
  } catch (thrown) {
    if (thrown instanceof Reroute) return reroute(run, thrown);
    if (thrown instanceof NotYet) return waitAgain(thrown, carrier);
    return fail(run, handler, carrier, thrown);
  }
}

async function fail(run: Run, handler: Handler<JobName>, carrier: Carrier, thrown: unknown): Promise<JobSummary> {
  const error = toFleetError(thrown);
  const aborting = run.operation.abort !== undefined;
  const decision = aborting
    ? ({ next: "end", status: error.code === "canceled" ? "canceled" : "failed" } as const)
    : decide(error, {
        attempts: run.operation.attempts,
        attemptsAllowed: jobs[run.kind].attempts,
        random: Math.random(),
      });
  run.log[decision.next === "end" && error.code === "internal" ? "error" : "info"](
    {
      code: error.code,
      facts: error.facts,
      next: decision.next,
      ...(error.code === "internal" ? { err: error.cause } : {}),
    },
    "run failed",
  );
  switch (decision.next) {
    case "yield":
      return yieldJob(error, carrier);
    case "replace":
      return reroute(
        run,
        new Reroute(PLACE, { operation: { waitingFor: error.message }, sandbox: { state: "placing" } }),
        error,
      );
    case "retry":
      await run.write({
        operation: {
          attempts: run.operation.attempts + 1,
          lastError: toErrorRecord(error),
          waitingFor: `retry after ${error.code}`,
        },
      });
      throw new RetryLater(error, decision.delayMs);
    case "end":
      return undoAndEnd(run, handler, carrier, { error, status: decision.status });
  }
}

/** Undoes, then ends. An undo that fails is tried again by the next run, which finds the decision in the record. */
async function undoAndEnd(
  run: Run,
  handler: Handler<JobName>,
  carrier: Carrier,
  { error, status }: { error: FleetError; status: "failed" | "canceled" },
): Promise<JobSummary> {
  if (!handler.undo) {
    await end(run, carrier, { status, error });
  } else {
    await run.write({ operation: { abort: toErrorRecord(error), attempts: run.operation.attempts + 1 } });
    const undone = await handler.undo(run).catch((thrown: unknown) => {
      const problem = toFleetError(thrown);
      if (problem.code === "lock_lost") throw problem;
      run.log.warn({ code: problem.code, facts: problem.facts, err: problem.cause }, "could not undo yet");
      throw new RetryLater(problem, Math.min(30_000, 1_000 * 2 ** Math.min(5, run.operation.attempts)));
    });
    const told = undone.undone.length > 0 ? error.with({ undone: undone.undone }) : error;
    await end(run, carrier, { status, error: told }, undone);
  }
  throw new UnrecoverableError(error.message);
}

async function end(run: Run, carrier: Carrier, ended: OperationEnd, ending: Pick<Ending<JobName>, "write"> = {}) {
  run.undoing().guard?.();
  const { store } = run.context;
  const write = { ...ending.write, operation: { ...ending.write?.operation, timings: run.timings } };
  const released = await store.end(run.id, carrier.fence, ended, write);
  run.log.info(
    { status: ended.status, ...(ended.status === "succeeded" ? {} : { code: ended.error.code }), timings: run.timings },
    "operation ended",
  );
  await addReleased(run.context, released);
}

/** Adds the jobs of operations that may go now. What a crash leaves out, the sweeper adds. */
export async function addReleased(context: WorkerContext, released: readonly OperationId[]): Promise<void> {
  for (const id of released) {
    const operation = await context.store.load(id);
    if (operation && !isEnded(operation.status)) await addJob(context, operation);
  }
}

export async function addJob(context: WorkerContext, operation: OperationRecord): Promise<void> {
  const { id, kind, queue, job, priority, sandbox, team } = operation;
  await context.queues.add(queue, {
    id: job,
    kind,
    priority: queue === PLACE ? priority : 0,
    data: { operation: id, sandbox, team },
  });
}

async function reroute(run: Run, { queue, write }: Reroute, error?: FleetError): Promise<JobSummary> {
  const seq = run.operation.seq + 1;
  const again = error ? { attempts: run.operation.attempts + 1, lastError: toErrorRecord(error) } : {};
  await run.write({
    ...write,
    operation: { ...write.operation, ...again, queue, seq, job: `${run.id}.${seq}`, timings: run.timings },
  });
  await addJob(run.context, run.operation);
  run.log.info({ queue }, "operation goes on in another queue");
  return { outcome: "replaced", queue };
}

/** Leaves the job as it is: a lost lock has a new owner already, a shutdown hands it back at once. */
async function yieldJob(error: FleetError, { job, token }: Carrier): Promise<never> {
  if (error.code === "lock_lost") throw error;
  await job.moveToDelayed(Date.now(), token);
  throw new DelayedError();
}

async function waitAgain({ delayMs }: NotYet, { job, token }: Carrier): Promise<never> {
  if (delayMs > 0) {
    await job.moveToDelayed(Date.now() + delayMs, token);
    throw new DelayedError();
  }
  await job.moveToWait(token);
  throw new WaitingError();
}

function summaryOf(operation: OperationRecord): JobSummary {
  return isEnded(operation.status) ? { outcome: operation.status } : { outcome: "unknown" };
}
