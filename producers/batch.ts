/** What a producer holds of a batch. */
import { type ErrorRecord, FleetError, type FleetErrorCode, fromErrorRecord } from "../shared/errors.ts";
import type { BatchId, OperationId, SandboxId, TeamId } from "../shared/ids.ts";
import type { JobName, JobOutput } from "../shared/jobs/index.ts";
import { batchNotFound, type ItemEnd, toItemEnd } from "../shared/state/batches.ts";
import type { BatchPolicy, BatchRecord, EndedOperation } from "../shared/state/records.ts";
import { type BatchWatch, type EndWatch, loadEnded, toTimerMs, toUnknown, type Wait } from "./end-watch.ts";
import { toResult } from "./handle.ts";
import { linkSignals } from "./link-signals.ts";
import type { Parts } from "./parts.ts";

/** Items by status; `total` is their sum at every moment. */
export interface BatchCounts {
  /** Items so far. */
  total: number;
  queued: number;
  running: number;
  succeeded: number;
  failed: number;
  canceled: number;
  /** The failed ones by their error's code. */
  failedByCode: Partial<Record<FleetErrorCode, number>>;
}

export interface BatchView {
  id: BatchId;
  team: TeamId;
  policy: BatchPolicy;
  /** `open`: its producer may add items. `stopping`: what has not ended is ended, and for an undo what was made is destroyed. */
  status: "open" | "running" | "stopping" | "ended";
  counts: BatchCounts;
  /** How many items it will have; undefined until that is known. */
  size: number | undefined;
  /** Why it was stopped. */
  reason: ErrorRecord | undefined;
  /** Sandboxes that its undo has destroyed, and those that it could not. */
  undone: number;
  undoFailed: number;
  /** ms since the epoch. */
  createdAt: number;
  endedAt: number | undefined;
}

/** How one item ended. `operationId` is absent where it became none, such as a bad line. */
export type ItemOutcome = { index: number } & (
  | { ok: true; operationId: OperationId; sandboxId: SandboxId; kind: JobName; result: JobOutput<JobName> }
  | { ok: false; operationId: OperationId | undefined; error: FleetError }
);

export interface Batch {
  readonly id: BatchId;
  /** Throws `batch_not_found`, as all of these. */
  status(): Promise<BatchView>;
  /** Exact: of one moment, and the same that the operations' records say. */
  counts(): Promise<BatchCounts>;
  /**
   * How each item ended, in the order of their ends, from the first: also late, again and from another process, through
   * reconnects, without missing one or telling one twice. Ends with the batch.
   */
  results(options?: { signal?: AbortSignal | undefined }): AsyncIterableIterator<ItemOutcome>;
  /**
   * Resolves once the batch has ended, whatever became of its items. Throws `timeout` with `facts.goesOn` when `timeoutMs`
   * passed first, or the signal's reason.
   */
  result(options?: Wait): Promise<BatchView>;
  /**
   * Ends all items that have not ended, each as `canceled` and undone; with `undo` the sandboxes that others made are
   * destroyed, too. Nothing begins any more once this resolves. False: the batch had ended before.
   */
  cancel(options?: { undo?: boolean | undefined }): Promise<boolean>;
}

/** Ended items that are read at once. */
const PAGE = 32;
/** Between two looks at a batch of which nothing is heard: its clockwork emits no events. */
const LOOK_MS = 500;

export function createBatch(parts: Parts, watch: EndWatch, id: BatchId): Batch {
  const load = async () => {
    const record = await parts.link.request(() => parts.batches.load(id));
    if (record === null || (parts.team !== undefined && record.team !== parts.team)) throw batchNotFound(id);
    return record;
  };
  return {
    id,
    status: async () => toBatchView(await load()),
    counts: async () => toCounts(await load()),
    results: ({ signal } = {}) => results(parts, watch, { id, load }, signal),
    result: (wait = {}) => waitForEnd(watch, { id, load }, wait),
    async cancel({ undo = false } = {}) {
      const why = {
        code: "canceled" as const,
        message: "its batch was canceled by its producer",
        facts: { batch: id },
      };
      const outcome = await parts.link.request(() => parts.batches.stop(id, undo ? "undo" : "cancel", why, parts.team));
      if (outcome === "unknown") throw batchNotFound(id);
      return outcome === "ok";
    },
  };
}

export function toBatchView(record: BatchRecord): BatchView {
  const { id, team, policy, open, stop, size, reason, undone, undoFailed, createdAt, endedAt } = record;
  const counts = toCounts(record);
  const status = endedAt !== undefined ? "ended" : stop !== undefined ? "stopping" : open === 1 ? "open" : "running";
  const known = open === 0 ? counts.total : size;
  return { id, team, policy, status, counts, size: known, reason, undone, undoFailed, createdAt, endedAt };
}

function toCounts({ queued, running, succeeded, failed, canceled, codes }: BatchRecord): BatchCounts {
  const total = queued + running + succeeded + failed + canceled;
  return { total, queued, running, succeeded, failed, canceled, failedByCode: codes };
}

async function waitForEnd(
  watch: EndWatch,
  { id, load }: { id: BatchId; load(): Promise<BatchRecord> },
  { timeoutMs = Number.POSITIVE_INFINITY, signal }: Wait,
): Promise<BatchView> {
  const timerMs = toTimerMs(timeoutMs);
  using stop = linkSignals(signal);
  using changes = watch.watchBatch(id);
  const late = () => {
    const text = `batch ${id} has not ended within ${timeoutMs} ms; it goes on`;
    stop.abort(new FleetError("timeout", text, { facts: { batch: id, goesOn: true } }));
  };
  const timer = timerMs === undefined ? undefined : setTimeout(late, timerMs);
  try {
    while (true) {
      stop.signal.throwIfAborted();
      const record = await throughOutages(load, changes, stop.signal);
      if (record.endedAt !== undefined) return toBatchView(record);
      await changes.next(LOOK_MS, stop.signal);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** While Redis is away a wait goes on. */
async function throughOutages<T>(ask: () => Promise<T>, changes: BatchWatch, signal: AbortSignal): Promise<T> {
  while (true) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof FleetError) || error.code !== "redis_unavailable") throw error;
      await changes.next(LOOK_MS, signal);
    }
  }
}

function results(
  parts: Parts,
  watch: EndWatch,
  of: { id: BatchId; load(): Promise<BatchRecord> },
  signal: AbortSignal | undefined,
): AsyncIterableIterator<ItemOutcome> {
  const stop = new AbortController();
  const outcomes = follow(parts, watch, of, [stop.signal, signal]);
  return {
    next: () => outcomes.next(),
    async return() {
      // A step that waits for the next end would otherwise hold this up until that comes.
      stop.abort();
      return outcomes.return(undefined);
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

async function* follow(
  parts: Parts,
  watch: EndWatch,
  { id, load }: { id: BatchId; load(): Promise<BatchRecord> },
  ends: readonly (AbortSignal | undefined)[],
): AsyncGenerator<ItemOutcome, undefined> {
  using stop = linkSignals(...ends);
  const { signal } = stop;
  using changes = watch.watchBatch(id);
  const ask = <T>(request: () => Promise<T>) => throughOutages(request, changes, signal);
  const told = new Set<number>();
  let at = 0;
  let last: string | undefined;
  try {
    while (!signal.aborted) {
      // The record first: what it calls ended has all its entries in the list.
      const { endedAt } = await ask(load);
      const from = last === undefined ? 0 : at - 1;
      const page = await ask(() => parts.link.request(() => parts.batches.ends(id, from, PAGE)));
      if (last !== undefined && page[0] !== last) {
        // Redis came back with an earlier state, and goes on in another order.
        last = undefined;
        continue;
      }
      const fresh = last === undefined ? page : page.slice(1);
      const ends = fresh.map(toItemEnd).filter(({ index }) => !told.has(index));
      for (const outcome of await ask(() => toOutcomes(parts, id, ends))) {
        told.add(outcome.index);
        yield outcome;
        if (signal.aborted) return;
      }
      at = from + page.length;
      last = page.at(-1);
      if (fresh.length > 0) continue;
      if (endedAt !== undefined) return;
      await changes.next(LOOK_MS, signal);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

async function toOutcomes(parts: Parts, batch: BatchId, ends: readonly ItemEnd[]): Promise<ItemOutcome[]> {
  const ids = ends.flatMap(({ operation }) => operation ?? []);
  const records = new Map((await loadEnded(parts, ids)).map((record) => [record.id, record]));
  return Promise.all(
    ends.map(async ({ index, operation, code }): Promise<ItemOutcome> => {
      if (operation !== undefined) return { index, ...toOutcome(operation, records.get(operation)) };
      const refused = await parts.link.request(() => parts.batches.loadRejection(batch, index));
      const error = refused ?? { code: code ?? "internal", message: "it left no error", facts: {} };
      return { index, ok: false, operationId: undefined, error: fromErrorRecord(error) };
    }),
  );
}

type Outcome = ItemOutcome extends infer O ? (O extends ItemOutcome ? Omit<O, "index"> : never) : never;

function toOutcome(operationId: OperationId, record: EndedOperation | undefined): Outcome {
  try {
    if (!record) throw toUnknown(operationId);
    const { kind, sandbox } = record;
    return { ok: true, operationId, sandboxId: sandbox, kind, result: toResult(kind, record) };
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    return { ok: false, operationId, error };
  }
}
