/** From a stream of jobs to the accepted items of a batch, in chunks: nothing but the chunk at hand is held. */
import { z } from "zod";
import { defer } from "../shared/deferred.ts";
import { FleetError } from "../shared/errors.ts";
import type { BatchId, OperationId, SandboxId } from "../shared/ids.ts";
import { JOB_NAMES, type JobInput, type JobName } from "../shared/jobs/index.ts";
import { sayIssue, toRefusal } from "../shared/jobs/problems.ts";
import type { NewJob } from "../shared/queues.ts";
import { hashInput, type ItemGroup } from "../shared/state/accept.ts";
import { inChunks } from "./in-chunks.ts";
import type { Parts } from "./parts.ts";
import { splitSecrets } from "./split-secrets.ts";
import { forgetSecrets, newIds, type Prepared, prepare, sealSecrets } from "./submit.ts";

/** One job of a batch. `index` tells which item it is; one more than the one before when absent, 0 at first. */
export type BatchJob = { [N in JobName]: { kind: N; input: JobInput<N>; index?: number } }[JobName];

/** An item that can't be a job, such as a line that can't be read: it fails with this error. */
export interface BadJob {
  error: FleetError;
  index?: number;
}

export type BatchJobs = Iterable<BatchJob | BadJob> | AsyncIterable<BatchJob | BadJob>;

/** An item ready to be asked for, or why it can't be. */
export type Item = { index: number } & ({ prepared: Prepared; weight: number } | { refused: FleetError; hash: string });

/** Items to a round trip: enough that it costs little, few enough that two of them take no memory to speak of. */
const CHUNK = { size: 100, weight: 1_000_000, lingerMs: 20 };
/** The same of copies, whose input is there but once. */
const COPIES = 1_000;

/** Accepts items until their source ends or the batch is stopped. Throws what is not about one item; it can be gone on with. */
export async function submitItems(
  parts: Parts,
  batch: BatchId,
  chunks: AsyncIterable<Item[]>,
  signal: AbortSignal | undefined,
): Promise<void> {
  signal?.throwIfAborted();
  const aborted = defer<never>();
  aborted.promise.catch(() => {}); // raced below
  const onAbort = () => aborted.reject(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  const entries = chunks[Symbol.asyncIterator]();
  let adding: Promise<void> = Promise.resolve();
  try {
    while (true) {
      // A source that gives nothing, such as an idle pipe, must not hold up whoever leaves.
      const next = await Promise.race([entries.next(), aborted.promise]);
      if (next.done === true) break;
      const { jobs, stopped } = await acceptChunk(parts, batch, next.value);
      await adding;
      adding = addJobs(parts, jobs);
      if (stopped) break;
    }
    signal?.throwIfAborted();
  } finally {
    signal?.removeEventListener("abort", onAbort);
    entries.return?.()?.catch(() => {}); // not waited for, see in-chunks.ts
    await adding;
  }
}

type QueuedJob = NewJob & { queue: string };

interface Asked {
  index: number;
  prepared: Prepared;
  id: OperationId;
  sandbox: SandboxId;
}

async function acceptChunk(
  parts: Parts,
  batch: BatchId,
  chunk: readonly Item[],
): Promise<{ jobs: QueuedJob[]; stopped: boolean }> {
  const asked = chunk.flatMap((item): Asked[] =>
    "prepared" in item ? [{ index: item.index, prepared: item.prepared, ...newIds(item.prepared) }] : [],
  );
  const sealed = ({ id, prepared }: Asked) => ({ id, secrets: prepared.request.secrets });
  for (const one of asked) if (one.prepared.request.secrets) await sealSecrets(parts, sealed(one));
  const groups = inGroups(asked);
  const acceptances = await parts.link.request(() => parts.store.acceptItems(batch, groups));
  const jobs: QueuedJob[] = [];
  let stopped = false;
  for (const [at, one] of asked.entries()) {
    const acceptance = acceptances[at] ?? { outcome: "known" };
    if (acceptance.outcome === "accepted") {
      const { id, sandbox, team, queue, priority, needsJob } = acceptance.accepted;
      const data = { operation: id, sandbox, team };
      if (needsJob) jobs.push({ id, kind: one.prepared.request.kind, queue, priority, data });
      continue;
    }
    await forgetSecrets(parts, sealed(one)).catch(() => {}); // they expire
    if (acceptance.outcome === "stopped") stopped = true;
    if (acceptance.outcome === "refused") {
      const { error, hash } = acceptance;
      if (await reject(parts, batch, { index: one.index, refused: error, hash })) stopped = true;
    }
  }
  for (const item of chunk) if ("refused" in item && (await reject(parts, batch, item))) stopped = true;
  return { jobs, stopped };
}

/** Neighbours that ask for the same share one request. */
function inGroups(asked: readonly Asked[]): ItemGroup[] {
  const groups: { prepared: Prepared; request: ItemGroup["request"]; items: Asked[] }[] = [];
  for (const one of asked) {
    const last = groups.at(-1);
    if (last?.prepared === one.prepared) last.items.push(one);
    else groups.push({ prepared: one.prepared, request: one.prepared.request, items: [one] });
  }
  return groups;
}

/** Returns whether the batch is stopped. Throws what is about the batch rather than about this item's input. */
async function reject(
  parts: Parts,
  batch: BatchId,
  { index, refused, hash }: { index: number; refused: FleetError; hash: string },
): Promise<boolean> {
  const aboutBatch = refused.code === "idempotency_conflict" || refused.code === "batch_not_found";
  if (aboutBatch || refused.policy !== "never") throw refused.with({ batch, item: index });
  const outcome = await parts.link
    .request(() => parts.batches.reject(batch, index, hash, refused))
    .catch((error: unknown) => {
      throw error instanceof FleetError ? error.with({ batch, item: index }) : error;
    });
  return outcome === "stopped";
}

/** A failure here fails nothing: the workers' sweeper adds the job of an accepted operation that has none. */
async function addJobs(parts: Parts, jobs: readonly QueuedJob[]): Promise<void> {
  if (jobs.length > 0) await parts.link.request(() => parts.queues.addAll(jobs)).catch(() => {});
}

export interface ItemOptions {
  onQuota: "refuse" | "wait" | undefined;
  inheritsTtl?: boolean | undefined;
}

/** `count` times the same provision, checked once. */
export async function* toCopies(prepared: Prepared, count: number): AsyncGenerator<Item[]> {
  for (let from = 0; from < count; from += COPIES) {
    const length = Math.min(COPIES, count - from);
    yield Array.from({ length }, (_, at) => ({ index: from + at, prepared, weight: 0 }));
  }
}

export function toItems(parts: Parts, jobs: BatchJobs, options: ItemOptions): AsyncGenerator<Item[]> {
  return inChunks(checked(parts, jobs, options), {
    ...CHUNK,
    weightOf: (item) => ("weight" in item ? item.weight : 0),
  });
}

async function* checked(parts: Parts, jobs: BatchJobs, options: ItemOptions): AsyncGenerator<Item> {
  let next = 0;
  for await (const job of jobs) {
    const index = Numbered.safeParse(job).data?.index ?? next;
    next = index + 1;
    yield await toItem(parts, index, job, options);
  }
}

const Index = z.int().min(0).max(9_999_999);
const Numbered = z.object({ index: Index });
const Bad = z.object({ error: z.instanceof(FleetError) });
const Job = z.strictObject({
  kind: z.enum(JOB_NAMES, { error: `must be one of ${JOB_NAMES.join(", ")}` }),
  input: z.record(z.string(), z.unknown(), { error: "must be an object" }),
  index: Index.optional(),
});

async function toItem(parts: Parts, index: number, job: unknown, options: ItemOptions): Promise<Item> {
  const bad = Bad.safeParse(job);
  if (bad.success) return { index, refused: bad.data.error, hash: "" };
  const parsed = Job.safeParse(job, { error: sayIssue });
  if (!parsed.success) return { index, refused: toRefusal("job", parsed.error), hash: "" };
  const { kind, input } = parsed.data;
  try {
    const prepared = await prepareItem(parts, kind, input, options);
    return { index, prepared, weight: JSON.stringify(prepared.request.input).length };
  } catch (error) {
    if (!(error instanceof FleetError) || error.policy !== "never") throw error;
    const [hash = ""] = hashInput(kind, splitSecrets(kind, input).stored, undefined, []);
    return { index, refused: error, hash };
  }
}

/** What is asked for by itself only. */
const ALONE: { readonly [N in JobName]?: string } = {
  upload: "a file's content",
  shell: "what somebody types into",
  adopt: "what was there before, and an undo of the batch would destroy,",
};

/** Interactive work overtakes what comes in a batch, unless that says otherwise. */
export async function prepareItem(
  parts: Parts,
  kind: JobName,
  input: Readonly<Record<string, unknown>>,
  { onQuota, inheritsTtl }: ItemOptions,
): Promise<Prepared> {
  const reason = ALONE[kind];
  if (reason !== undefined)
    throw new FleetError("unsupported", `${kind}: ${reason} can't be part of a batch; use fleet.${kind}`);
  const prepared = await prepare(parts, kind, kind === "provision" ? { priority: "batch", ...input } : input);
  return { ...prepared, request: { ...prepared.request, onQuota, inheritsTtl } };
}
