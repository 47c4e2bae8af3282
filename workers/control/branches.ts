/** What was made for a branch alone goes once its batch is over. */
import { BatchId } from "../../shared/ids.ts";
import type { WorkerContext } from "../context.ts";
import { ASK_AGAIN_MS, ask } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

/** Its producer takes a moment from the snapshot to the batch, and to the last item of it; after this long it is dead. */
const PRODUCER_MS = 600_000;

export async function settleBranches(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys, store } = context;
  const branches = await redis.hgetall(keys.branches);
  await forEachRecord(
    context,
    Object.keys(branches).map((id) => ({ id })),
    async ({ id }) => {
      const snapshot = await store.loadSnapshot(id);
      if (!snapshot) return void (await redis.hdel(keys.branches, id));
      const batch = BatchId.parse(branches[id]);
      if (!(await isOver(context, batch, { since: snapshot.createdAt, now: now() }))) return;
      const sandbox = await store.loadSandbox(snapshot.sandbox);
      const input = { sandboxId: snapshot.sandbox, snapshotId: id };
      const idempotencyKey = `branch ${id} ${Math.floor(now() / ASK_AGAIN_MS)}`;
      const why = { idempotencyKey, why: "the branch that it was for is over" };
      const asked = sandbox && (await ask(context, sandbox, { ...why, kind: "delete_snapshot", input }));
      if (!asked) await redis.hdel(keys.branches, id); // it went with its sandbox
    },
  );
}

async function isOver(
  { batches, redis, keys }: WorkerContext,
  id: BatchId,
  { since, now }: { since: number; now: number },
): Promise<boolean> {
  const batch = await batches.load(id);
  if (batch === null) return now - since > PRODUCER_MS;
  if (batch.endedAt === undefined && batch.open === 1) {
    const addedAt = Number((await redis.zscore(keys.batchesOpen, id)) ?? now);
    if (now - addedAt > PRODUCER_MS) await batches.close(id);
  }
  return batch.endedAt !== undefined;
}
