/** Snapshots whose time is up are deleted: by an operation like any other, asked for until it has taken place. */
import { runScript } from "../../shared/redis/script.ts";
import type { WorkerContext } from "../context.ts";
import { ASK_AGAIN_MS, ask, PAGE, POSTPONE } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

export async function expireSnapshots(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys, store } = context;
  const due = await redis.zrangebyscore(keys.snapshotExpiries, "-inf", now(), "WITHSCORES", "LIMIT", 0, PAGE);
  const entries = due.flatMap((id, at) => (at % 2 === 0 ? [{ id, dueAt: due[at + 1] ?? "" }] : []));
  await forEachRecord(context, entries, async ({ id, dueAt }) => {
    try {
      const snapshot = await store.loadSnapshot(id);
      const sandbox = snapshot && (await store.loadSandbox(snapshot.sandbox));
      const input = { sandboxId: snapshot?.sandbox, snapshotId: id };
      const why = { idempotencyKey: `snapshot ${id} ${dueAt}`, why: "its snapshot's time is up" };
      const asked = sandbox && (await ask(context, sandbox, { ...why, kind: "delete_snapshot", input }));
      if (!asked) await redis.zrem(keys.snapshotExpiries, id);
    } finally {
      // A crash before this finds the same due time, hence the same key again.
      await runScript(redis, POSTPONE, [keys.snapshotExpiries], [id, dueAt, now() + ASK_AGAIN_MS]);
    }
  });
}
