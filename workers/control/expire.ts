/** Sandboxes whose time is up are destroyed: by an operation like any other, asked for until they are gone. */
import { FleetError } from "../../shared/errors.ts";
import { newOperationId, OperationId, SandboxId } from "../../shared/ids.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { addJob } from "../run/process-operation.ts";
import { forEachRecord } from "./for-each-record.ts";

const PAGE = 200;
/** A destroy may fail for good (its node is down): after this long it is asked for again. */
const ASK_AGAIN_MS = 300_000;

export async function expireSandboxes(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys } = context;
  const due = await redis.zrangebyscore(keys.expiries, "-inf", now(), "WITHSCORES", "LIMIT", 0, PAGE);
  const entries = due.flatMap((id, at) => (at % 2 === 0 ? [{ id, dueAt: due[at + 1] ?? "" }] : []));
  await forEachRecord(context, entries, async ({ id, dueAt }) => {
    try {
      if (!(await expire(context, id, dueAt))) await redis.zrem(keys.expiries, id);
    } finally {
      // XX: the end of the sandbox removes the entry. A crash before this finds the same due time, hence the same key again;
      // a record that can't be read makes way for those behind it.
      await redis.zadd(keys.expiries, "XX", now() + ASK_AGAIN_MS, id);
    }
  });
}

/** False: there is nothing to destroy any more. */
async function expire(context: WorkerContext, id: string, dueAt: string): Promise<boolean> {
  const sandbox = await context.store.loadSandbox(SandboxId.parse(id));
  if (!sandbox || sandbox.endedAt !== undefined) return false;
  return destroySandbox(context, sandbox, { idempotencyKey: `ttl ${sandbox.id} ${dueAt}`, why: "its time is up" });
}

/** Has a sandbox destroyed, unless that is under way. False: Redis knows it no more. */
export async function destroySandbox(
  context: WorkerContext,
  sandbox: SandboxRecord,
  { idempotencyKey, why }: { idempotencyKey: string; why: string },
): Promise<boolean> {
  const { store, log } = context;
  if (await isBeingDestroyed(context, sandbox.id)) return true;
  const input = { sandboxId: sandbox.id };
  try {
    const accepted = await store.accept({
      id: newOperationId(),
      kind: "destroy",
      sandbox: sandbox.id,
      team: sandbox.team,
      scope: undefined,
      input,
      secrets: undefined,
      idempotencyKey,
      batch: false,
      newSandbox: undefined,
    });
    const operation = await store.load(accepted.id);
    if (operation && !accepted.parked && !accepted.existing) await addJob(context, operation);
    log.info({ sandbox: sandbox.id, operation: accepted.id, why }, "sandbox is destroyed");
    return true;
  } catch (error) {
    if (error instanceof FleetError && error.code === "sandbox_not_found") return false;
    throw error;
  }
}

/** Another destroy would only stand in line behind it. */
async function isBeingDestroyed({ redis, keys, store }: WorkerContext, sandbox: SandboxId): Promise<boolean> {
  const changes = await redis.lrange(`${keys.prefix}:changes:${sandbox}`, 0, -1);
  const operations = await Promise.all(changes.map((id) => store.load(OperationId.parse(id))));
  return operations.some((one) => one?.kind === "destroy" && !isEnded(one.status));
}
