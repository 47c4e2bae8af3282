/**
 * Aborts: a flag in the record, and a message that tells of it at once. A message may be lost, so every process also looks
 * by itself.
 */

import { type FleetError, fromErrorRecord } from "../../shared/errors.ts";
import { newFence, OperationId } from "../../shared/ids.ts";
import { jobs } from "../../shared/jobs/index.ts";
import { unreserve } from "../../shared/placement/reservation.ts";
import type { Command } from "../../shared/state/operations.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { addJob, addReleased, findSeat } from "../run/add-jobs.ts";
import type { LiveRuns } from "../run/process-operation.ts";
import { freeVmid } from "../sandbox/release.ts";
import { startEvery } from "./every.ts";
import { forEachRecord } from "./for-each-record.ts";
import { withLock } from "./lock.ts";

/** With the lock of a process that died this is the longest that an abort goes unheard. */
const LOOK_MS = 300;
export const ABORTS_LOCK_MS = 600;
/** Operations that are settled at once. */
const LANES = 8;
/** Field of the operation's hash: its abort has woken it. */
const PROMOTED = "promoted";

export function startAborts(context: WorkerContext, live: LiveRuns): Disposable {
  const { redis, keys, log, wake } = context;
  const hear = async (id: string) => {
    const run = [...live].find((one) => one.id === id);
    return run ? run.lookForAbort() : settleAbort(context, OperationId.parse(id));
  };
  const look = async () => {
    if ((await redis.scard(keys.aborting)) === 0) return;
    const ids = [...live].map(({ id }) => id);
    const asked = ids.length === 0 ? [] : await redis.smismember(keys.aborting, ...ids);
    await Promise.all(ids.filter((_, index) => asked[index] === 1).map(hear));
    await withLock(redis, abortsLock(keys.prefix), () => settleAborts(context), ABORTS_LOCK_MS);
  };
  let ended = false;
  const tell = (error: unknown) => ended || log.warn({ err: error }, "could not look for aborts yet");
  const off = wake.on((kind, subject) => {
    if (kind === "abort") hear(subject).catch(tell);
  });
  const looking = startEvery(LOOK_MS, look, tell);
  return {
    [Symbol.dispose]() {
      ended = true;
      looking[Symbol.dispose]();
      off();
    },
  };
}

export const abortsLock = (prefix: string): string => `${prefix}:control-lock:abort`;

/** Aborted operations that no run will notice: they wait, or are parked. */
export async function settleAborts(context: WorkerContext): Promise<void> {
  const aborting = await context.redis.smembers(context.keys.aborting);
  const lanes = Array.from({ length: LANES }, (_, lane) =>
    aborting.filter((_, at) => at % LANES === lane).map((id) => ({ id })),
  );
  const settle = ({ id }: { id: string }) => settleAbort(context, OperationId.parse(id));
  await Promise.all(lanes.map((lane) => forEachRecord(context, lane, settle)));
}

/** Ends an aborted operation that has made nothing; wakes one that has; leaves a running one to its run. */
export async function settleAbort(context: WorkerContext, id: OperationId): Promise<void> {
  const operation = await context.store.load(id);
  if (!operation || isEnded(operation.status) || !operation.abort) {
    await context.redis.srem(context.keys.aborting, id);
    return;
  }
  const error = fromErrorRecord(operation.abort);
  if (operation.parked === 1 && operation.step === undefined) return endWithoutRun(context, id, error);
  const job = await context.queues.get(operation.queue).getJob(operation.job);
  // Not added yet, or lost: what has begun needs a run to undo it.
  if (!job) return operation.step === undefined ? endWithoutRun(context, id, error) : addJob(context, operation);
  const state = await job.getState();
  if (operation.step === undefined && (state === "waiting" || state === "prioritized" || state === "delayed")) {
    const seat = await findSeat(context, operation);
    // Removal fails for a job that has just been taken: then its run ends the operation.
    const removed = await job.remove().then(
      () => true,
      () => false,
    );
    if (removed) await endWithoutRun(context, id, error, seat);
  } else if (state === "delayed" && (await context.redis.hsetnx(context.keys.operation(id), PROMOTED, 1)) === 1) {
    // Once: an undo that fails waits for its own next time.
    await job.promote().catch(() => {}); // no longer delayed: just what we want
  }
}

/** Ends an operation that has nothing in PVE. A run that claims it after us finds it ended. `seat`: see `findSeat`. */
export async function endWithoutRun(
  context: WorkerContext,
  id: OperationId,
  error: FleetError,
  seat?: number,
): Promise<void> {
  const claim = await context.store.claim(id, newFence());
  if (claim.outcome !== "claimed") return;
  const status = error.code === "canceled" ? "canceled" : "failed";
  const makesSandbox = jobs[claim.operation.kind].makesSandbox === true;
  const released = await context.store.end(
    claim.writer,
    { status, error },
    makesSandbox ? { sandbox: { state: "failed" }, also: leasesOf(context, claim.sandbox) } : {},
  );
  const { kind, acceptedAt, timings } = claim.operation;
  context.metrics.operationEnded({ kind, code: error.code, node: claim.sandbox.node, acceptedAt, timings });
  context.log.info({ operation: id, code: error.code, status }, "operation ended before it ran");
  await addReleased(context, released, seat);
}

/** What a sandbox without container may have leased already: its run got that far, and no step was begun. */
function leasesOf({ keys }: WorkerContext, { id, node, vmid, leasedIp }: SandboxRecord): Command[] {
  return [
    ...(node === undefined ? [] : unreserve(keys, node, id)),
    ...(vmid === undefined ? [] : freeVmid(keys, vmid)),
    ...(leasedIp === undefined ? [] : [["HDEL", keys.ips, leasedIp]]),
  ];
}
