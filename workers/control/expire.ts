/**
 * Sandboxes whose time is up are destroyed, stopped or paused: by an operation like any other, asked for until it has
 * taken place. The end of that operation ends the TTL, too. All processes look, and share what is due among them.
 */
import { isDeepStrictEqual } from "node:util";
import { FleetError } from "../../shared/errors.ts";
import { OperationId, type SandboxId } from "../../shared/ids.ts";
import type { JobName } from "../../shared/jobs/index.ts";
import { defineScript } from "../../shared/redis/script.ts";
import type { AcceptRequest } from "../../shared/state/accept.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { askOperation } from "../run/ask-operation.ts";
import { startEvery } from "./every.ts";

const LOOK_MS = 100;
/** Of other things that are due, looked at one after the other. */
export const PAGE = 200;
/** Ends in one step of Redis: there may be thousands, and others wait for each step. */
const ENDS = 50;
/** An operation may fail for good (its node is down): after this long it is asked for again. */
export const ASK_AGAIN_MS = 300_000;

/** Unless it was ended or given another time meanwhile. KEYS: sorted set. ARGV: member, time as it was, time to be. */
export const POSTPONE = defineScript(`
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1]) end
return 1
`);

export function startExpiry(context: WorkerContext): Disposable {
  return startEvery(
    LOOK_MS,
    () => expireSandboxes(context),
    (error) => context.log.warn({ err: error }, "could not look for sandboxes whose time is up yet"),
  );
}

/** `now`: in place of Redis' clock, by which the ends were set. */
export async function expireSandboxes({ store, log }: WorkerContext, now?: () => number): Promise<void> {
  const next = async () => {
    const page = await store.endDue({ size: ENDS, againMs: ASK_AGAIN_MS, now: now?.() });
    for (const one of page.asked) log.info({ ...one, why: "its time is up" }, "the clockwork asks for its end");
    return page.more;
  };
  const drain = async () => {
    while (await next());
  };
  // While one step is at work in Redis, what the one before has brought is read.
  if (await next()) await Promise.all([drain(), drain()]);
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
  { kind, input, idempotencyKey, why }: Reason & { kind: JobName; input: AcceptRequest["input"] },
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
  { kind, input }: { kind: JobName; input: AcceptRequest["input"] },
): Promise<boolean> {
  const changes = await redis.lrange(keys.changes(sandbox), 0, -1);
  const operations = await Promise.all(changes.map((id) => store.load(OperationId.parse(id))));
  return operations.some((one) => one?.kind === kind && !isEnded(one.status) && isDeepStrictEqual(one.input, input));
}
