/** Batches: opened, found again, listed. */
import { createHash } from "node:crypto";
import { z } from "zod";
import { FleetError } from "../shared/errors.ts";
import { BatchId, newBatchId, type TeamId } from "../shared/ids.ts";
import type { JobInput } from "../shared/jobs/index.ts";
import { batchNotFound } from "../shared/state/batches.ts";
import { BATCH_POLICIES, type BatchPolicy } from "../shared/state/records.ts";
import { currentTrace, SpanKind, spanned } from "../shared/trace.ts";
import { assertRepeatable } from "./assert-repeatable.ts";
import { type Batch, type BatchView, createBatch, toBatchView } from "./batch.ts";
import type { EndWatch } from "./end-watch.ts";
import type { Parts } from "./parts.ts";
import { checkOnQuota, DEFAULT_TEAM } from "./submit.ts";
import {
  type BatchJobs,
  type Item,
  type ItemOptions,
  prepareItem,
  submitItems,
  toCopies,
  toItems,
} from "./submit-batch.ts";

export interface BatchOptions {
  /**
   * Its id, of your choice (letters, digits, `_`, `.`, `-`), made up when absent. Given again it goes on with the same
   * batch: what was accepted before is not accepted twice.
   */
  id?: string | undefined;
  /** The same for an id made from this key and the team. */
  idempotencyKey?: string | undefined;
  /**
   * What the first failed item means: `keep` goes on, `stop` cancels what has not begun, `undo` cancels everything and
   * destroys what was made. The workers see to it, whatever happens to this process.
   */
  policy?: BatchPolicy | undefined;
  /** Where the team has used up a quota an item waits (`wait`, the default) or fails (`refuse`). */
  onQuota?: "refuse" | "wait" | undefined;
  /** Called once the batch is stored, before its items are: to note its id or to watch it grow. */
  onOpen?: ((batch: Batch) => void) | undefined;
  /** Stops adding items. What was accepted goes on, and the batch stays open for its id. */
  signal?: AbortSignal | undefined;
}

/** The same provision `count` times. */
export type BatchProvision = JobInput<"provision"> & { count: number };

export interface Batches {
  /** A batch that this or another process began. Throws `batch_not_found`. */
  get(id: string): Promise<Batch>;
  /** All that are kept, newest first. */
  list(): Promise<BatchView[]>;
}

export type SubmitBatch = (source: BatchProvision | BatchJobs, options?: BatchOptions) => Promise<Batch>;

/** `inheritsTtl`: its TTL is that of a sandbox that they are copies of. */
export type BeginBatch = (
  source: BatchProvision | BatchJobs,
  options?: BatchOptions,
  how?: Pick<ItemOptions, "inheritsTtl">,
) => Promise<Batch>;

export function createBatches(parts: Parts, watch: EndWatch): Batches & { submit: BeginBatch } {
  return {
    async submit(source, options = {}, how = {}) {
      const { policy, id, onQuota } = checkBatchOptions(parts, options);
      const { chunks, size } = isJobs(source)
        ? { chunks: toItems(parts, source, { onQuota }), size: undefined }
        : await copies(parts, source, { onQuota, ...how });
      const team = parts.team ?? DEFAULT_TEAM;
      const attributes = { "fleet.batch": id, "fleet.team": team };
      return spanned("fleet.batch", { kind: SpanKind.PRODUCER, attributes }, async () => {
        const trace = currentTrace();
        await parts.link.request(() => parts.batches.open({ id, team, policy, size, trace }));
        const batch = createBatch(parts, watch, id);
        options.onOpen?.(batch);
        await submitItems(parts, id, chunks, options.signal);
        await parts.link.request(() => parts.batches.close(id));
        return batch;
      });
    },
    async get(id) {
      const known = BatchId.safeParse(id);
      if (!known.success) throw batchNotFound(id);
      const batch = createBatch(parts, watch, known.data);
      await batch.status();
      return batch;
    },
    async list() {
      const records = await parts.link.request(() => parts.batches.list(parts.passOver));
      return records.filter(({ team }) => parts.team === undefined || team === parts.team).map(toBatchView);
    },
  };
}

function isJobs(source: BatchProvision | BatchJobs): source is BatchJobs {
  if (typeof source === "object" && source !== null) return Symbol.iterator in source || Symbol.asyncIterator in source;
  throw new FleetError("invalid_input", "batch: must be a provision with a count, or jobs");
}

const Count = z.int().min(1).max(1_000_000);

/** Refused as a whole, before anything is stored: what is wrong with one is wrong with all. */
async function copies(
  parts: Parts,
  { count, ...input }: BatchProvision,
  options: ItemOptions,
): Promise<{ chunks: AsyncIterable<Item[]>; size: number }> {
  if (!Count.safeParse(count).success) throw invalid("count", "must be a whole number from 1 to 1000000");
  const prepared = await prepareItem(parts, "provision", input, options);
  assertRepeatable(input, count);
  return { chunks: toCopies(prepared, count), size: count };
}

const Options = z.object({
  id: BatchId.optional(),
  idempotencyKey: z.string().min(1).max(512).optional(),
  policy: z.enum(BATCH_POLICIES).default("keep"),
});

export function checkBatchOptions(
  parts: Parts,
  options: BatchOptions,
): { id: BatchId; policy: BatchPolicy } & ItemOptions {
  const onQuota = checkOnQuota(options.onQuota ?? "wait");
  const parsed = Options.safeParse(options);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw invalid(issue?.path.map(String).join(".") ?? "options", issue?.message ?? "is invalid");
  }
  const { id, idempotencyKey, policy } = parsed.data;
  if (id !== undefined && idempotencyKey !== undefined) throw invalid("idempotencyKey", "give it or an id, not both");
  const made = idempotencyKey === undefined ? newBatchId() : toBatchId(parts.team, idempotencyKey);
  return { id: id ?? made, policy, onQuota };
}

const toBatchId = (team: TeamId | undefined, key: string): BatchId =>
  BatchId.parse(
    `key_${createHash("sha256")
      .update(`${team ?? DEFAULT_TEAM} ${key}`)
      .digest("base64url")}`,
  );

const invalid = (field: string, problem: string): FleetError =>
  new FleetError("invalid_input", `${field}: ${problem}`, { facts: { fields: [field] } });
