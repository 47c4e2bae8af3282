/** One run of an operation: its fence, its lock, its deadline, the slots it takes and the record it writes. */
import type { Job } from "bullmq";
import type { Logger } from "pino";
import { FleetError, fromErrorRecord, toFleetError } from "../../shared/errors.ts";
import type { OperationId, Vmid } from "../../shared/ids.ts";
import { type JobName, jobs, type ParsedInput } from "../../shared/jobs/index.ts";
import { LOCK_MS } from "../../shared/queues.ts";
import type { Write } from "../../shared/state/operations.ts";
import { ErrorRecordSchema, type OperationRecord, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import type { Call } from "../pve/api.ts";

const BEAT_MS = 1_500;
/** Room for a request that is on its way when the lock runs out. */
const MARGIN_MS = 750;
/** How long a waiter for a slot sleeps at most, should the wake-up be lost. */
const SLOT_POLL_MS = 500;

export interface Run<N extends JobName = JobName> extends AsyncDisposable {
  readonly context: WorkerContext;
  readonly kind: N;
  readonly id: OperationId;
  readonly input: ParsedInput<N>;
  readonly log: Logger;
  /** As last read or written by this run. */
  readonly operation: OperationRecord;
  readonly sandbox: SandboxRecord;
  /** Aborts with a FleetError: cancel, time-out, lost lock, shutdown. */
  readonly signal: AbortSignal;
  /** For every PVE request: the signal, and the check that runs right before it is sent. */
  readonly call: Call;
  /** Throws when this run may not act any more; synchronous, so nothing can come between it and the act. */
  check(): void;
  write(write: Write): Promise<void>;
  /** A VMID for the sandbox, recorded with the lease; the one it had goes back. */
  leaseVmid(): Promise<Vmid>;
  /** One of `addresses` (with prefix length); the one it has, if any. */
  leaseAddress(addresses: readonly string[]): Promise<string>;
  /** Records what is begun, before it is begun. */
  begin(step: string, write?: Write & { upid?: string }): Promise<void>;
  /** Adds what `work` took, in ms, to the operation's timings. */
  timed<T>(step: string, work: () => Promise<T>): Promise<T>;
  /**
   * Holds a slot while `work` runs. Where the outcome is unknown, or a task may still run, the slot is kept:
   * the next run has it already, and the operation's end gives it up.
   */
  withSlot<T>(name: string, limit: number, work: () => Promise<T>): Promise<T>;
  /** A call for undoing, which cancel and time-out must not stop; a lost lock does. */
  undoing(): Call;
  abort(error: FleetError): void;
  /** Timings so far, those of earlier runs included. */
  readonly timings: Record<string, number>;
}

/** Errors after which something of ours may still be going on in PVE. */
const UNCERTAIN = new Set([
  "outcome_unknown",
  "task_lost",
  "lock_lost",
  "shutting_down",
  "node_unreachable",
  "pve_bad_reply",
  "canceled",
  "timeout",
]);

export function startRun<N extends JobName>(
  context: WorkerContext,
  job: Job,
  token: string,
  claim: { kind: N; fence: string; operation: OperationRecord; sandbox: SandboxRecord; claimedAt: number },
): Run<N> {
  const { store, slots, redis, keys } = context;
  const { fence } = claim;
  const id = claim.operation.id;
  let operation = claim.operation;
  let sandbox = claim.sandbox;
  let deadline = claim.claimedAt + LOCK_MS - MARGIN_MS;
  const stop = new AbortController(); // cancel, time-out, lost lock, shutdown
  const lost = new AbortController(); // lost lock only
  const holding = new Set<string>();
  const timings: Record<string, number> = { ...operation.timings };
  const log = context.log.child({ operation: id, kind: claim.kind, sandbox: sandbox.id });

  const lockLost = (why: string) =>
    new FleetError("lock_lost", `this run of ${id} lost its lock (${why})`, { facts: { operation: id } });
  const loseLock = (why: string) => {
    if (lost.signal.aborted) return;
    const error = lockLost(why);
    lost.abort(error);
    stop.abort(error);
  };
  const checkLock = () => {
    if (performance.now() > deadline) loseLock("its time passed");
    lost.signal.throwIfAborted();
  };
  const check = () => {
    checkLock();
    stop.signal.throwIfAborted();
  };

  const beat = async () => {
    const begun = performance.now();
    const [extended, abort] = await Promise.all([
      job.extendLock(token, LOCK_MS),
      redis.hget(keys.operation(id), "abort"),
      holding.size > 0 ? slots.renew([...holding], id) : undefined,
    ]);
    if (extended === 0) return loseLock("another run took the job");
    deadline = begun + LOCK_MS - MARGIN_MS;
    if (abort !== null) stop.abort(fromErrorRecord(ErrorRecordSchema.parse(JSON.parse(abort))));
  };
  const beats = setInterval(() => {
    if (performance.now() > deadline) loseLock("its time passed");
    else beat().catch((error: unknown) => log.warn({ err: error }, "could not renew the lock"));
  }, BEAT_MS);
  const outOfTime = setTimeout(
    () =>
      stop.abort(
        new FleetError("timeout", `${claim.kind} took longer than ${jobs[claim.kind].timeoutMs} ms`, {
          facts: { timeoutMs: jobs[claim.kind].timeoutMs },
        }),
      ),
    Math.max(0, Math.min(jobs[claim.kind].timeoutMs - (Date.now() - (operation.startedAt ?? Date.now())), 2 ** 31 - 1)),
  );

  const takeSlot = async (name: string, limit: number) => {
    while (true) {
      check();
      if (await slots.take(name, limit, id)) {
        holding.add(name);
        return;
      }
      await context.wake.next(["free", "ended"], { timeoutMs: SLOT_POLL_MS, signal: stop.signal });
    }
  };

  const run: Run<N> = {
    context,
    kind: claim.kind,
    id,
    input: operation.input as ParsedInput<N>, // parsed by the producer and unchanged since; handlers of an older schema parse again
    log,
    signal: stop.signal,
    call: { signal: stop.signal, guard: check },
    timings,
    get operation() {
      return operation;
    },
    get sandbox() {
      return sandbox;
    },
    check,
    async write(write) {
      checkLock();
      await store.write(id, fence, write).catch((error: unknown) => {
        if (error instanceof FleetError && error.code === "lock_lost") loseLock(String(error.facts["why"]));
        throw error;
      });
      operation = { ...operation, ...withoutNulls(write.operation) };
      sandbox = { ...sandbox, ...withoutNulls(write.sandbox) };
    },
    async leaseVmid() {
      checkLock();
      const vmid = await store.leaseVmid(id, fence, context.config.PVE_VMID_RANGE);
      sandbox = { ...sandbox, vmid };
      return vmid;
    },
    async leaseAddress(addresses) {
      checkLock();
      const leasedIp = await store.leaseAddress(id, fence, addresses);
      sandbox = { ...sandbox, leasedIp };
      return leasedIp;
    },
    async begin(step, { upid, ...write } = {}) {
      const record = { name: step, at: Date.now(), ...(upid === undefined ? {} : { upid }) };
      await run.write({ ...write, operation: { ...write.operation, step: record } });
    },
    async timed(step, work) {
      const begun = performance.now();
      try {
        return await work();
      } finally {
        timings[step] = Math.round((timings[step] ?? 0) + performance.now() - begun);
      }
    },
    async withSlot(name, limit, work) {
      const before = performance.now();
      await takeSlot(name, limit);
      timings["waited"] = Math.round((timings["waited"] ?? 0) + performance.now() - before);
      try {
        const result = await work();
        await release(name);
        return result;
      } catch (error) {
        if (!UNCERTAIN.has(toFleetError(error).code)) await release(name);
        throw error;
      }
    },
    undoing: () => ({ signal: lost.signal, guard: checkLock }),
    abort: (error) => stop.abort(error),
    async [Symbol.asyncDispose]() {
      clearInterval(beats);
      clearTimeout(outOfTime);
    },
  };
  const release = async (name: string) => {
    holding.delete(name);
    await slots.release(name, id);
  };
  return run;
}

function withoutNulls<T extends object>(fields: { [K in keyof T]?: T[K] | null | undefined } | undefined): Partial<T> {
  const entries = Object.entries(fields ?? {}).map(([key, value]) => [key, value === null ? undefined : value]);
  return Object.fromEntries(entries) as Partial<T>; // same keys, nulls as undefined
}
