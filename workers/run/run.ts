/** One run of an operation: its fence, its lock, its deadline, the slots it takes and the record it writes. */
import { setTimeout as delay } from "node:timers/promises";
import type { Job } from "bullmq";
import type { Logger } from "pino";
import { FleetError, fromErrorRecord } from "../../shared/errors.ts";
import type { NodeName, OperationId, Vmid } from "../../shared/ids.ts";
import { type JobName, jobs, type ParsedInput } from "../../shared/jobs/index.ts";
import { LOCK_MS } from "../../shared/queues.ts";
import type { AddressRange, OperationEnd, Sealed, Write, Writer } from "../../shared/state/operations.ts";
import type { OutputEntry } from "../../shared/state/output.ts";
import { ErrorRecordSchema, type OperationRecord, type SandboxRecord } from "../../shared/state/records.ts";
import { spanned } from "../../shared/trace.ts";
import type { WorkerContext } from "../context.ts";
import { adoptNode } from "../control/adopt-node.ts";
import type { Call } from "../pve/api.ts";
import { NotYet } from "./not-yet.ts";

/** A cancel whose wake-up was lost is found with it, and must have taken effect within two seconds. */
const BEAT_MS = 1_000;
/** Room for a request that is on its way when the lock runs out. */
const MARGIN_MS = 750;
/** How long a waiter for a slot sleeps at most, should the wake-up be lost. */
const SLOT_POLL_MS = 500;
/** For so long a waiter leaves its turn to others when a holder of its slot waits behind it. */
const ASIDE_MS = 1_000;

export interface Run<N extends JobName = JobName> extends AsyncDisposable {
  readonly context: WorkerContext;
  readonly kind: N;
  readonly id: OperationId;
  /** Shown where something is written that is not the record. */
  readonly fence: string;
  readonly input: ParsedInput<N>;
  readonly log: Logger;
  /** As last read or written by this run. */
  readonly operation: OperationRecord;
  readonly sandbox: SandboxRecord;
  /** As at the claim, which brings it along: who can do with an old token need not ask for it. */
  readonly sealed: Sealed;
  /** Aborts with a FleetError: cancel, time-out, lost lock, shutdown. */
  readonly signal: AbortSignal;
  /** For reading PVE: the signal, and the check that runs right before a request is sent. */
  readonly call: Call;
  /**
   * For changing PVE: checked as `call` before it is sent, but cut short by a lost lock alone. PVE runs a request to its
   * end whether we listen or not, so a cancel must hear the answer to know what there is to undo.
   */
  readonly writing: Call;
  /** Throws when this run may not act any more; synchronous, so nothing can come between it and the act. */
  check(): void;
  write(write: Write): Promise<OperationId[]>;
  /** The operation's last write, with its event; returns parked operations that may go now. */
  end(ended: OperationEnd, write: Write): Promise<OperationId[]>;
  /** Adds live output, and says how many listen to it; `refused` when this run may not write any more. */
  addOutput(entries: readonly OutputEntry[]): Promise<number | "refused">;
  /** A VMID for the sandbox, recorded with the lease; the one it had goes back. */
  leaseVmid(): Promise<Vmid>;
  /** Leases the VMID of a container that is there already; returns who else has it. */
  claimVmid(vmid: Vmid): Promise<string | null>;
  /** An address of the range, with prefix length; the one it has, if any. */
  leaseAddress(range: AddressRange): Promise<string>;
  /** Makes an address that the container was seen to have the sandbox's. Throws `address_refused`. */
  claimAddress(address: string): Promise<void>;
  /** The sandbox that was copied is needed no more: its next operation may go; returns those that may. */
  leaveSource(): Promise<OperationId[]>;
  /** Records what is begun, before it is begun. */
  begin(step: string, write?: Write & { open?: boolean; upid?: string; node?: NodeName }): Promise<void>;
  /** Takes back what the claim recorded as sent, where that was not begun. */
  unsend(): Promise<void>;
  /**
   * The step's task has ended well. Not written: the next step's record says it, and until then a later run that finds
   * the step open learns the same from PVE at once.
   */
  close(): void;
  /** Adds what `work` took, in ms, to the operation's timings. */
  timed<T>(step: string, work: () => Promise<T>): Promise<T>;
  /**
   * Holds a slot while `work` runs, which hears its name: of several names, the one that is free first. Where the step
   * that failed is still open, the slot is kept: a later attempt has it already, and the operation's end gives it up.
   * `call` says what may interrupt the wait for it.
   */
  withSlot<T>(
    names: string | readonly string[],
    limit: number,
    work: (name: string) => Promise<T>,
    call?: Call,
  ): Promise<T>;
  /** Gives up slots that earlier runs kept, save those that `keep` names. */
  releaseSlots(keep: (name: string) => boolean): Promise<void>;
  /** Whether this operation holds slots, so that others may be waiting for it. */
  holdsSlots(): Promise<boolean>;
  /** Waits; an abort ends it early, and throws. */
  pause(ms: number, call?: Call): Promise<void>;
  /** A call for undoing, which cancel and time-out must not stop; a lost lock and a shutdown do. */
  undoing(): Call;
  abort(error: FleetError): void;
  /** Aborts it if its record says so. */
  lookForAbort(): Promise<void>;
  /** Timings so far, those of earlier runs included. */
  readonly timings: Record<string, number>;
}

export function startRun<N extends JobName>(
  context: WorkerContext,
  job: Job,
  token: string,
  claim: {
    kind: N;
    writer: Writer;
    operation: OperationRecord;
    sandbox: SandboxRecord;
    sealed: Sealed;
    sent: boolean;
    claimedAt: number;
  },
): Run<N> {
  const { store, slots, redis, keys } = context;
  const { writer } = claim;
  const { id } = writer;
  let operation = claim.operation;
  let sandbox = claim.sandbox;
  let deadline = claim.claimedAt + LOCK_MS - MARGIN_MS;
  const stop = new AbortController(); // cancel, time-out, lost lock, shutdown
  const lost = new AbortController(); // lost lock only
  const leave = new AbortController(); // lost lock, shutdown
  const holding = new Set<string>();
  const timings: Record<string, number> = { ...operation.timings };
  const log = context.log.child({ operation: id, kind: claim.kind, sandbox: sandbox.id });

  const lockLost = (why: string) =>
    new FleetError("lock_lost", `this run of ${id} lost its lock (${why})`, { facts: { operation: id } });
  const loseLock = (why: string) => {
    if (lost.signal.aborted) return;
    const error = lockLost(why);
    lost.abort(error);
    leave.abort(error);
    stop.abort(error);
  };
  // A destroy that has begun goes on to its end: half a destroyed container is of no use to anybody.
  const abort = (error: FleetError) => {
    if (claim.kind === "destroy" && operation.step !== undefined && error.code === "canceled") return;
    if (error.code === "shutting_down") leave.abort(error);
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

  const lookForAbort = async () => {
    const asked = await redis.hget(keys.operation(id), "abort");
    if (asked !== null) abort(fromErrorRecord(ErrorRecordSchema.parse(JSON.parse(asked))));
  };
  const beat = async () => {
    const begun = performance.now();
    const [extended, , lostSlots] = await Promise.all([
      job.extendLock(token, LOCK_MS),
      lookForAbort(),
      slots.renew([...holding], id),
    ]);
    if (extended === 0) return loseLock("another run took the job");
    const gone = lostSlots.find((name) => holding.has(name));
    if (gone !== undefined) return loseLock(`its slot ${gone} is gone`);
    deadline = begun + LOCK_MS - MARGIN_MS;
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

  /** False: stands in line. */
  const tryToTake = async (name: string, limit: number, { guard }: Call): Promise<boolean> => {
    while (true) {
      guard?.();
      const taken = await slots.take(name, limit, writer);
      if (typeof taken !== "object") return taken === "taken";
      await adoptNode(context, taken.unadopted, taken.server);
    }
  };
  /** Stands in line for each of them until one is free, then leaves the other lines. Throws `NotYet` to let a holder go first. */
  const takeSlot = async (names: readonly string[], limit: number, by: Call): Promise<string> => {
    using freed = context.wake.watch(["free", "ended"]);
    const lines = new Set<string>();
    let lookedAt = performance.now();
    const leaveLines = () => Promise.all([...lines].map((name) => slots.leaveLine(name, id)));
    try {
      while (true) {
        for (const name of names) {
          lines.add(name);
          if (!(await tryToTake(name, limit, by))) continue;
          lines.delete(name);
          holding.add(name);
          await leaveLines();
          return name;
        }
        await freed.next({ timeoutMs: SLOT_POLL_MS, signal: by.signal });
        // All who may run in this queue could wait like us, while the holder waits behind them for its own turn.
        if (performance.now() - lookedAt < SLOT_POLL_MS) continue;
        lookedAt = performance.now();
        const idle = await slots.idleHolder(names);
        if (idle) throw new NotYet(ASIDE_MS, `operation ${idle}, which holds a slot and waits itself`);
      }
    } catch (error) {
      await leaveLines();
      throw error;
    }
  };
  const release = async (name: string) => {
    checkLock();
    holding.delete(name);
    await slots.release(name, writer);
  };
  const call: Call = { signal: stop.signal, guard: check };
  /** On record, and not begun: whatever else is written first takes it back. */
  let sentAhead = claim.sent;
  let lastWrite: Promise<unknown> = Promise.resolve();
  /** Writes build on one another, so each waits for the one before, whatever became of it. */
  const inOrder = async <T>(write: () => Promise<T>): Promise<T> => {
    checkLock();
    const turn = lastWrite
      .catch(() => {})
      .then(() => {
        checkLock();
        return write();
      })
      .catch((error: unknown) => {
        if (error instanceof FleetError && error.code === "lock_lost") loseLock(String(error.facts["why"]));
        throw error;
      });
    lastWrite = turn;
    return turn;
  };

  const run: Run<N> = {
    context,
    kind: claim.kind,
    id,
    fence: writer.fence,
    input: operation.input as ParsedInput<N>, // parsed by the producer and unchanged since; handlers of an older schema parse again
    log,
    signal: stop.signal,
    call,
    writing: { signal: lost.signal, guard: check },
    timings,
    sealed: claim.sealed,
    get operation() {
      return operation;
    },
    get sandbox() {
      return sandbox;
    },
    check,
    write: ({ operation: fields, ...write }) =>
      inOrder(async () => {
        const step = sentAhead ? (operation.step ?? null) : undefined;
        const released = await store.write(writer, {
          ...write,
          operation: { step, ...fields },
          holds: [...holding],
        });
        sentAhead = false;
        operation = { ...operation, ...withoutNulls(fields) };
        sandbox = { ...sandbox, ...withoutNulls(write.sandbox) };
        return released;
      }),
    end: (ended, write) => inOrder(() => store.end(writer, ended, write)),
    addOutput: (entries) => store.addOutput(writer, entries),
    leaseVmid: () =>
      inOrder(async () => {
        const vmid = await store.leaseVmid(writer, context.config.PVE_VMID_RANGE);
        sandbox = { ...sandbox, vmid };
        return vmid;
      }),
    claimVmid: (vmid) =>
      inOrder(async () => {
        const holder = await store.claimVmid(writer, vmid);
        if (holder === null) sandbox = { ...sandbox, vmid };
        return holder;
      }),
    leaseAddress: (range) =>
      inOrder(async () => {
        const leasedIp = await store.leaseAddress(writer, range);
        sandbox = { ...sandbox, leasedIp };
        return leasedIp;
      }),
    async claimAddress(address) {
      if (sandbox.address === address) return;
      await inOrder(() => store.claimAddress(writer, address));
      sandbox = { ...sandbox, address };
    },
    leaveSource: () =>
      inOrder(async () => {
        const released = await store.leaveSource(writer);
        operation = { ...operation, source: undefined };
        return released;
      }),
    async begin(step, { open, upid, node, ...write } = {}) {
      if (sentAhead && step === "sent") {
        check();
        sentAhead = false;
        operation = { ...operation, step: { name: step, at: Date.now() } };
        return;
      }
      const record = { name: step, at: Date.now(), open, upid, node };
      await run.write({ ...write, operation: { ...write.operation, step: record } });
    },
    async unsend() {
      if (sentAhead) await run.write({});
    },
    close() {
      const { step } = operation;
      if (step) operation = { ...operation, step: { ...step, open: false } };
    },
    async timed(step, work) {
      const begun = performance.now();
      try {
        return await spanned(step, {}, work);
      } finally {
        timings[step] = Math.round((timings[step] ?? 0) + performance.now() - begun);
      }
    },
    async withSlot(names, limit, work, by = call) {
      const before = performance.now();
      const asked = typeof names === "string" ? [names] : names;
      const name = await spanned("slot", { attributes: { "fleet.slots": [...asked] } }, () =>
        takeSlot(asked, limit, by),
      );
      timings["waited"] = Math.round((timings["waited"] ?? 0) + performance.now() - before);
      try {
        const result = await work(name);
        await release(name);
        return result;
      } catch (error) {
        if (operation.step?.open !== true) await release(name);
        throw error;
      }
    },
    async releaseSlots(keep) {
      for (const name of await slots.held(id)) if (!keep(name)) await release(name);
    },
    holdsSlots: async () => (await slots.held(id)).length > 0,
    async pause(ms, { signal } = call) {
      await delay(ms, undefined, { signal }).catch(() => signal.throwIfAborted());
    },
    undoing: () => ({
      signal: leave.signal,
      guard: () => {
        checkLock();
        leave.signal.throwIfAborted();
      },
    }),
    abort,
    lookForAbort,
    async [Symbol.asyncDispose]() {
      clearInterval(beats);
      clearTimeout(outOfTime);
    },
  };
  return run;
}

function withoutNulls<T extends object>(fields: { [K in keyof T]?: T[K] | null | undefined } | undefined): Partial<T> {
  const given = Object.entries(fields ?? {}).filter(([, value]) => value !== undefined);
  const entries = given.map(([key, value]) => [key, value === null ? undefined : value]);
  return Object.fromEntries(entries) as Partial<T>; // same keys, nulls as undefined
}
