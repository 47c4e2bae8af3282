/**
 * Batches that were stopped, by their policy or by a cancel: what waits is ended, what runs is asked to end, and an undo
 * destroys what was made. Nothing of it begins any more from the stop's own step on; this only tidies up after it.
 */
import { OperationId, SandboxId } from "../../shared/ids.ts";
import type { BatchRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { settleAbort } from "./aborts.ts";
import { destroySandbox } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";
import { withLock } from "./lock.ts";

const PAGE = 200;
/** Items that are ended at once: each takes a handful of round trips, and thousands may wait. */
const LANES = 16;
/** Destroys that are asked for in one round, and when one is asked for again that has failed for good. */
const DESTROYS = 500;
const ASK_AGAIN_MS = 300_000;

export async function settleBatches(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const stopping = await context.redis.smembers(context.keys.batchesStopping);
  await forEachRecord(
    context,
    stopping.map((id) => ({ id })),
    ({ id }) => settleBatch(context, id, signal),
  );
}

/** Over all workers one at a time settles a batch; another is not waited for. */
export async function settleBatch(context: WorkerContext, id: string, signal: AbortSignal): Promise<void> {
  const { redis, keys, batches } = context;
  await withLock(redis, `${keys.prefix}:batch-lock:${id}`, async () => {
    const batch = await batches.load(id);
    if (batch?.stop === undefined || batch.endedAt !== undefined) {
      await redis.srem(keys.batchesStopping, id);
      return;
    }
    await endItems(context, batch, signal);
    if (batch.stop === "undo") await undo(context, batch, signal);
  });
}

/** A batch whose producer has not come back for as long as ended ones are kept takes no more items. */
export async function closeAbandoned({ redis, keys, batches, config }: WorkerContext): Promise<void> {
  const before = Date.now() - config.FLEET_RETENTION_HOURS * 3_600_000;
  for (const id of await redis.zrangebyscore(keys.batchesOpen, "-inf", before)) await batches.close(id);
}

async function endItems(context: WorkerContext, { id }: BatchRecord, signal: AbortSignal): Promise<void> {
  const { redis, keys, batches } = context;
  for (let cursor = "0"; ; ) {
    signal.throwIfAborted();
    const [next, page] = await redis.sscan(keys.batchLive(id), cursor, "COUNT", PAGE);
    const waiting = page.length === 0 ? [] : await batches.abortItems(id, page);
    const lanes = Array.from({ length: LANES }, (_, lane) => waiting.filter((_one, at) => at % LANES === lane));
    await Promise.all(
      lanes.map((lane) =>
        forEachRecord(
          context,
          lane.map((operation) => ({ id: operation })),
          (one) => settleAbort(context, OperationId.parse(one.id)),
        ),
      ),
    );
    if (next === "0") return;
    cursor = next;
  }
}

async function undo(context: WorkerContext, batch: BatchRecord, signal: AbortSignal): Promise<void> {
  const { redis, keys, batches } = context;
  const { id } = batch;
  while ((await batches.noteUndo(id)) > 0) signal.throwIfAborted();
  const due = await redis.zrangebyscore(keys.batchUndo(id), "-inf", Date.now(), "LIMIT", 0, DESTROYS);
  await forEachRecord(
    context,
    due.map((sandbox) => ({ id: sandbox })),
    async (one) => {
      const sandbox = await context.store.loadSandbox(SandboxId.parse(one.id));
      if (sandbox && sandbox.endedAt === undefined) {
        const round = Math.floor(Date.now() / ASK_AGAIN_MS);
        await destroySandbox(context, sandbox, {
          idempotencyKey: `undo ${id} ${one.id} ${round}`,
          why: "undo of its batch",
        });
      }
      await redis.zadd(keys.batchUndo(id), "XX", Date.now() + ASK_AGAIN_MS, one.id);
    },
  );
  await countUndone(context, batch, signal);
}

async function countUndone({ redis, keys, batches }: WorkerContext, { id }: BatchRecord, signal: AbortSignal) {
  // All ids at once: pages by rank would pass over one when an earlier one goes meanwhile.
  const sandboxes = (await redis.zrange(keys.batchUndo(id), "0", "-1")).map((one) => SandboxId.parse(one));
  for (let at = 0; at < sandboxes.length; at += PAGE) {
    signal.throwIfAborted();
    const page = sandboxes.slice(at, at + PAGE);
    const states = await Promise.all(page.map((sandbox) => redis.hmget(keys.sandbox(sandbox), "state", "endedAt")));
    const where = (is: (state: string | null | undefined, endedAt: string | null | undefined) => boolean) =>
      page.filter((_, index) => is(states[index]?.[0], states[index]?.[1]));
    const gone = where((state, endedAt) => !state || Boolean(endedAt));
    await batches.countUndone(id, "undone", gone);
    await batches.countUndone(
      id,
      "undoFailed",
      where((state) => state === "quarantined"),
    );
  }
  if (sandboxes.length === 0) await batches.countUndone(id, "undone", []); // it may be over
}
