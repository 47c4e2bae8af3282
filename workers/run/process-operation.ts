/** A job's run from claim to end: the one place where outcomes become records, events, retries and BullMQ states. */
import { DelayedError, type Job, UnrecoverableError, WaitingError } from "bullmq";
import { type ErrorRecord, FleetError, fromErrorRecord, toErrorRecord, toFleetError } from "../../shared/errors.ts";
import { newFence } from "../../shared/ids.ts";
import { type JobName, jobs } from "../../shared/jobs/index.ts";
import { type JobData, PLACE } from "../../shared/queues.ts";
import { type OperationEnd, toClaim } from "../../shared/state/operations.ts";
import type { OperationRecord } from "../../shared/state/records.ts";
import type { ClaimedAhead } from "../../shared/state/take.ts";
import { annotate, annotateFailure, currentTrace, linkTo } from "../../shared/trace.ts";
import type { WorkerContext } from "../context.ts";
import type { Ending, Handler } from "../handlers/handler.ts";
import { Reroute } from "../handlers/handler.ts";
import { addJob, addReleased, seatOf } from "./add-jobs.ts";
import { type Decision, decide } from "./decide.ts";
import { type JobSummary, seenOf, summaryOf } from "./job-summary.ts";
import { NotYet } from "./not-yet.ts";
import { type Run, startRun } from "./run.ts";
import { undo } from "./undo.ts";

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

export type LiveRuns = Set<Run>;
export type HandlerOf = (kind: JobName) => Handler<JobName>;

export async function processOperation(
  context: WorkerContext,
  job: Job<JobData>,
  token: string,
  options: { handlerOf: HandlerOf; live: LiveRuns; claimed?: ClaimedAhead | undefined },
): Promise<JobSummary> {
  const { store, config } = context;
  const id = job.data.operation;
  const jobId = job.id ?? id;
  const { claimed } = options;
  const claimedAt = claimed?.at ?? performance.now();
  const lockKey = `${config.FLEET_PREFIX}:${job.queueName}:${jobId}:lock`;
  const claim = claimed
    ? toClaim(claimed.fence, claimed.reply)
    : await store.claim(id, newFence(), { job: jobId, lockKey, lockToken: token });
  if (claim.outcome === "unknown") return { outcome: "unknown" };
  if (claim.outcome === "stale") return { outcome: "replaced" };
  if (claim.outcome === "again") {
    await addReleased(context, [id]);
    return { outcome: "replaced", queue: PLACE };
  }
  if (claim.outcome === "ended") return summaryOf(claim.operation);
  if (claim.outcome === "newer") return leaveToNewer(context, claim.what, { job, token });

  const kind = claim.operation.kind;
  await using run = startRun(context, job, token, {
    kind,
    writer: claim.writer,
    claimedAt,
    operation: claim.operation,
    sandbox: claim.sandbox,
    sealed: claim.sealed,
    sent: claim.sent,
  });
  const { claims, attempts, step, team, batch } = run.operation;
  annotate({
    "fleet.operation": id,
    "fleet.kind": kind,
    "fleet.sandbox": run.sandbox.id,
    "fleet.team": team,
    ...(batch === undefined ? {} : { "fleet.batch": batch }),
  });
  if (batch !== undefined) await linkToBatch(context, run.operation, batch);
  run.log.debug({ queue: job.queueName, claims, attempts, step }, "run begins");
  options.live.add(run);
  try {
    return await conclude(run, options.handlerOf(kind), { job, token });
  } finally {
    options.live.delete(run);
  }
}

/** How long an operation of a newer version lies before a worker looks at it again: the newer one may be that. */
const NEWER_MS = 500;

async function leaveToNewer({ log, metrics }: WorkerContext, what: string, { job, token }: Carrier): Promise<never> {
  log.warn({ operation: job.data.operation, what }, "left an operation to a newer worker");
  metrics.leftToNewer();
  await job.moveToDelayed(Date.now() + NEWER_MS, token);
  throw new DelayedError();
}

interface Carrier {
  job: Job<JobData>;
  token: string;
}

/** Runs the handler to an outcome. A healing error is retried here while the operation holds slots, else by BullMQ. */
async function conclude(run: Run, handler: Handler<JobName>, carrier: Carrier): Promise<JobSummary> {
  while (true) {
    try {
      refuseHopeless(run);
      const ending = await handler.run(run);
      await end(run, { status: "succeeded", result: ending.result }, ending);
      return { outcome: "succeeded", ...seenOf(run, ending.result) };
    } catch (thrown) {
      if (thrown instanceof Reroute) return reroute(run, thrown);
      if (thrown instanceof NotYet) return waitAgain(run, thrown, carrier);
      const done = await fail(run, handler, carrier, thrown).catch((problem: unknown) => {
        if (problem instanceof NotYet) return waitAgain(run, problem, carrier); // an undo needs slots, too
        // An undo that a shutdown cut short: another worker goes on with it.
        if (problem instanceof FleetError && problem.code === "shutting_down") return yieldJob(problem, carrier);
        throw problem;
      });
      if (done) return done;
    }
  }
}

/** Why the operation is to end, unless it is a destroy that has begun: that goes on to its end. */
function abortOf({ kind, operation }: Run): ErrorRecord | undefined {
  const unstoppable = kind === "destroy" && operation.step !== undefined && operation.abort?.code === "canceled";
  return unstoppable ? undefined : operation.abort;
}

function refuseHopeless(run: Run): void {
  const { operation, check } = run;
  const abort = abortOf(run);
  if (abort) throw fromErrorRecord(abort);
  check();
  if (operation.claims - operation.attempts > CRASHES_ALLOWED) {
    throw new FleetError("internal", `gave up after ${operation.claims} runs that ended without a word`, {
      facts: { runs: operation.claims },
    });
  }
}

/** Null: run the handler again. */
async function fail(
  run: Run,
  handler: Handler<JobName>,
  carrier: Carrier,
  thrown: unknown,
): Promise<JobSummary | null> {
  const error = toFleetError(thrown);
  const decision = decideOn(run, error);
  if (decision.next !== "retry") annotateFailure(error.code);
  run.log[error.code === "internal" ? "error" : "info"](
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
      if (error.code === "shutting_down") await run.unsend();
      return yieldJob(error, carrier);
    case "replace":
      return replace(run, handler, error, decision.delayMs);
    case "retry": {
      const released = await run.write({
        operation: {
          attempts: run.operation.attempts + 1,
          lastError: toErrorRecord(error),
          waitingFor: `retry after ${error.code}`,
        },
        leavesLine: run.operation.queue === PLACE,
      });
      await addReleased(run.context, released);
      // A job in BullMQ's `delayed` would leave its slots to nobody, while others in its queue wait for them.
      if (!(await run.holdsSlots())) {
        annotateFailure(error.code);
        throw new RetryLater(error, decision.delayMs);
      }
      await run.pause(decision.delayMs).catch(() => {}); // an abort is seen by the next round
      return null;
    }
    case "end":
      return undoAndEnd(run, handler, { error, status: decision.status });
  }
}

function decideOn(run: Run, error: FleetError): Decision {
  const { operation, kind } = run;
  const yields = error.code === "lock_lost" || error.code === "shutting_down";
  if (abortOf(run) && !yields) return { next: "end", status: error.code === "canceled" ? "canceled" : "failed" };
  const { attempts: attemptsAllowed, queue } = jobs[kind];
  return decide(error, {
    attempts: operation.attempts,
    attemptsAllowed,
    random: Math.random(),
    movable: queue === "place",
  });
}

/** Undoes, then ends. A crash in between is gone on with by the next run, which finds the decision in the record. */
async function undoAndEnd(
  run: Run,
  handler: Handler<JobName>,
  { error, status }: { error: FleetError; status: "failed" | "canceled" },
): Promise<JobSummary> {
  await run.write({ operation: { abort: toErrorRecord(error), attempts: run.operation.attempts + 1 } });
  const undone = await undo(run, handler);
  const told = undone.facts === undefined ? error : error.with(undone.facts);
  await end(run, { status, error: told }, undone);
  throw new UnrecoverableError(error.message);
}

/** How long placement leaves a node alone that gave an operation back, where there is another. */
const AVOID_MS = 30_000;

/** Back to placement, with nothing left on the node it had. */
async function replace(run: Run, handler: Handler<JobName>, error: FleetError, delayMs: number): Promise<JobSummary> {
  const { node } = run.sandbox;
  const undone = await undo(run, handler);
  if (undone.facts?.["quarantined"] === true) {
    await end(run, { status: "failed", error: error.with(undone.facts) }, undone);
    throw new UnrecoverableError(error.message);
  }
  await run.releaseSlots(() => false);
  const again = {
    attempts: run.operation.attempts + 1,
    lastError: toErrorRecord(error),
    avoid: node === undefined ? null : { node, until: Date.now() + AVOID_MS },
  };
  return reroute(
    run,
    new Reroute(PLACE, {
      operation: { ...again, status: "queued", startedAt: null, step: null, waitingFor: error.message },
      sandbox: {
        state: "placing",
        node: null,
        vmid: null,
        hostname: null,
        hwaddr: null,
        address: null,
        leasedIp: null,
        member: null,
      },
      also: undone.write?.also ?? [],
    }),
    delayMs,
  );
}

async function end(run: Run, ended: OperationEnd, ending: Pick<Ending<JobName>, "write"> = {}) {
  run.undoing().guard?.();
  const write = { ...ending.write, operation: { ...ending.write?.operation, timings: run.timings } };
  const released = await run.end(ended, write);
  run.context.metrics.operationEnded({
    kind: run.kind,
    code: ended.status === "succeeded" ? "ok" : ended.error.code,
    node: run.sandbox.node,
    acceptedAt: run.operation.acceptedAt,
    timings: run.timings,
  });
  run.log.info(
    { status: ended.status, ...(ended.status === "succeeded" ? {} : { code: ended.error.code }), timings: run.timings },
    "operation ended",
  );
  // It was at the head of the line, and took no turn: the next of its team has that.
  const { queue, priority } = run.operation;
  const seat = queue === PLACE && ended.status === "canceled" ? seatOf(priority) : undefined;
  await addReleased(run.context, released, seat);
}

/** An item has a trace of its own, which begins here; ten thousand in their batch's would be of no use to anybody. */
async function linkToBatch(
  { traces, batches }: WorkerContext,
  { trace }: OperationRecord,
  batch: string,
): Promise<void> {
  if (traces === null || trace !== undefined) return;
  const headers = await batches.traceOf(batch).catch(() => null); // Redis' trouble is the run's to find
  if (headers !== null) linkTo(headers);
}

async function reroute(run: Run, { queue, write }: Reroute, delayMs = 0): Promise<JobSummary> {
  const seq = run.operation.seq + 1;
  // Where whoever asked traces nothing, its first run begins a trace, and the others go on with it.
  const trace = run.operation.trace ?? currentTrace();
  const released = await run.write({
    ...write,
    operation: { ...write.operation, queue, seq, job: `${run.id}.${seq}`, timings: run.timings, trace },
  });
  await addJob(run.context, run.operation, delayMs);
  await addReleased(run.context, released);
  run.log.info({ queue }, "operation goes on in another queue");
  return { outcome: "replaced", queue };
}

/** Leaves the job as it is: a lost lock has a new owner already, a shutdown hands it back at once. */
async function yieldJob(error: FleetError, { job, token }: Carrier): Promise<never> {
  if (error.code === "lock_lost") throw error;
  // To the head of its line, not behind it: it may hold slots that the others wait for.
  await job.moveToWait(token);
  throw new WaitingError();
}

async function waitAgain(run: Run, { delayMs, message }: NotYet, { job, token }: Carrier): Promise<never> {
  // A run that ends like this is no crash. Placing is not counted anyway, and says itself what it waits for.
  if (run.operation.queue !== PLACE)
    await run.write({ operation: { claims: run.operation.claims - 1, waitingFor: message } });
  else if (delayMs > 0) await addReleased(run.context, await run.write({ leavesLine: true }));
  if (delayMs > 0) {
    await job.moveToDelayed(Date.now() + delayMs, token);
    throw new DelayedError();
  }
  await job.moveToWait(token);
  throw new WaitingError();
}
