/**
 * Sandboxes whose time is up are destroyed, stopped or paused: by an operation like any other, asked for until it has
 * taken place. The end of that operation ends the TTL, too.
 */
import { isDeepStrictEqual } from "node:util";
import { FleetError } from "../../shared/errors.ts";
import { OperationId, SandboxId } from "../../shared/ids.ts";
import { type JobName, parseInput } from "../../shared/jobs/index.ts";
import { defineScript, runScript } from "../../shared/redis/script.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { askOperation } from "../run/ask-operation.ts";
import { forEachRecord } from "./for-each-record.ts";

export const PAGE = 200;
/** An operation may fail for good (its node is down): after this long it is asked for again. */
export const ASK_AGAIN_MS = 300_000;

/** Unless it was ended or given another time meanwhile. KEYS: sorted set. ARGV: sandbox, time as it was, time to be. */
export const POSTPONE = defineScript(`
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) end
return 1
`);

export async function expireSandboxes(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys } = context;
  const due = await redis.zrangebyscore(keys.expiries, "-inf", now(), "WITHSCORES", "LIMIT", 0, PAGE);
  const entries = due.flatMap((id, at) => (at % 2 === 0 ? [{ id, dueAt: due[at + 1] ?? "" }] : []));
  await forEachRecord(context, entries, async ({ id, dueAt }) => {
    try {
      if (!(await expire(context, id, dueAt))) await redis.zrem(keys.expiries, id);
    } finally {
      // A crash before this finds the same due time, hence the same key again; a record that can't be read makes way for
      // those behind it.
      await runScript(redis, POSTPONE, [keys.expiries], [id, dueAt, now() + ASK_AGAIN_MS]);
    }
  });
}

/** False: there is nothing to end any more. */
async function expire(context: WorkerContext, id: string, dueAt: string): Promise<boolean> {
  const sandbox = await context.store.loadSandbox(SandboxId.parse(id));
  if (!sandbox || sandbox.endedAt !== undefined) return false;
  const why = { idempotencyKey: `ttl ${sandbox.id} ${dueAt}`, why: "its time is up" };
  const { ttlAction: action } = sandbox;
  if (action === "destroy") return destroySandbox(context, sandbox, why);
  const input = parseInput("power", { sandboxId: sandbox.id, action, allowStop: true });
  return ask(context, sandbox, { ...why, kind: "power", input });
}

export interface Reason {
  idempotencyKey: string;
  why: string;
}

/** Has a sandbox destroyed, unless that is under way. False: Redis knows it no more. */
export async function destroySandbox(context: WorkerContext, sandbox: SandboxRecord, reason: Reason): Promise<boolean> {
  return ask(context, sandbox, { ...reason, kind: "destroy", input: { sandboxId: sandbox.id } });
}

/** Has something done to a sandbox, unless the same is under way. False: Redis knows it no more, or it has ended. */
export async function ask(
  context: WorkerContext,
  sandbox: SandboxRecord,
  { kind, input, idempotencyKey, why }: Reason & { kind: JobName; input: unknown },
): Promise<boolean> {
  if (await isUnderWay(context, sandbox.id, { kind, input })) return true;
  try {
    const { id } = await askOperation(context, sandbox, { kind, input, idempotencyKey });
    context.log.info({ sandbox: sandbox.id, operation: id, kind, why }, "the clockwork asks for it");
    return true;
  } catch (error) {
    if (error instanceof FleetError && ["sandbox_not_found", "sandbox_gone"].includes(error.code)) return false;
    throw error;
  }
}

/** The same again would only stand in line behind it. */
async function isUnderWay(
  { redis, keys, store }: WorkerContext,
  sandbox: SandboxId,
  { kind, input }: { kind: JobName; input: unknown },
): Promise<boolean> {
  const changes = await redis.lrange(keys.changes(sandbox), 0, -1);
  const operations = await Promise.all(changes.map((id) => store.load(OperationId.parse(id))));
  return operations.some((one) => one?.kind === kind && !isEnded(one.status) && isDeepStrictEqual(one.input, input));
}
