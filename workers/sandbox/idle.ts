/** Since when nobody uses a sandbox, as far as Redis knows. */
import { OperationId } from "../../shared/ids.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";

/** ms since the epoch; null: an operation is at work in it. */
export async function unusedSince(
  { redis, keys, store }: Pick<WorkerContext, "redis" | "keys" | "store">,
  sandbox: SandboxRecord,
): Promise<number | null> {
  for (const id of await redis.smembers(keys.users(sandbox.id))) {
    const operation = await store.load(OperationId.parse(id));
    if (operation && !isEnded(operation.status)) return null;
    await redis.srem(keys.users(sandbox.id), id); // somebody removed its record
  }
  return Number((await redis.hget(keys.uses, sandbox.id)) ?? sandbox.stateAt ?? sandbox.createdAt);
}
