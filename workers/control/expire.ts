/**
 * Sandboxes whose time is up are destroyed, stopped or paused: by an operation like any other, asked for until it has
 * taken place. The end of that operation ends the TTL, too. All processes look, and share what is due among them.
 */
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import { OperationId, SandboxId, TeamId } from "../../shared/ids.ts";
import { TtlAction } from "../../shared/jobs/fields.ts";
import { type JobName, parseInput } from "../../shared/jobs/index.ts";
import { defineScript, runScript } from "../../shared/redis/script.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import { withPrelude } from "../../shared/state/scripts.ts";
import type { WorkerContext } from "../context.ts";
import { askOperation, askOperations } from "../run/ask-operation.ts";
import { startEvery } from "./every.ts";

const LOOK_MS = 250;
/** In one step of Redis; there may be thousands, and others wait for it. */
export const PAGE = 200;
/** An operation may fail for good (its node is down): after this long it is asked for again. */
export const ASK_AGAIN_MS = 300_000;
/** Whoever has taken a sandbox and died has it no longer than this. */
const TAKEN_MS = 5_000;

/** Unless it was ended or given another time meanwhile. KEYS: sorted set. ARGV for each: member, time as it was, time to be. */
export const POSTPONE = defineScript(`
for i = 1, #ARGV, 3 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('ZADD', KEYS[1], ARGV[i + 2], ARGV[i]) end
end
return 1
`);

/**
 * Tells of ends that come near, and takes a page of sandboxes whose time is up and for which nothing has been asked yet.
 * ARGV: page, ms that they are taken for, ms until what is under way is looked at again, now or '' for this server's clock →
 * [whether there may be more, [sandbox, due at, taken until, team, action]…].
 */
const TAKE_DUE = withPrelude(`
local page, again = ARGV[2], tonumber(ARGV[4])
local now = tonumber(ARGV[5]) or nowMs()
local untilMs = string.format('%.0f', now + ARGV[3])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P..':expiring', '-inf', now, 'LIMIT', 0, page)) do
  redis.call('ZREM', P..':expiring', id)
  local state, team, maker, action = unpack(redis.call('HMGET', sbxKey(id), 'state', 'team', 'operation', 'ttlAction'))
  local at = endOf(id)
  if state and not GONE[state] and at and at > now then
    emit('sandbox.expiring', string.format('%.0f', now), maker, id, team, cjson.encode({expiresAt = at, action = action or 'destroy'}))
  end
end
local function isUsed(id)
  for _, op in ipairs(redis.call('SMEMBERS', P..':users:'..id)) do
    local status = redis.call('HGET', opKey(op), 'status')
    if status and not ENDED[status] then return true end
  end
  return false
end
-- The same again would only stand in line behind it.
local function isUnderWay(id, action)
  for _, op in ipairs(redis.call('LRANGE', P..':changes:'..id, 0, -1)) do
    local status, kind, input = unpack(redis.call('HMGET', opKey(op), 'status', 'kind', 'input'))
    if status and not ENDED[status] and (kind == 'destroy' or kind == 'power' and cjson.decode(input).action == action) then return true end
  end
  return false
end
local due, out = redis.call('ZRANGEBYSCORE', P..':expiries', '-inf', now, 'WITHSCORES', 'LIMIT', 0, page), {}
for i = 1, #due, 2 do
  local id = due[i]
  local state, team, action, seconds, extends =
    unpack(redis.call('HMGET', sbxKey(id), 'state', 'team', 'ttlAction', 'ttlSeconds', 'ttlExtendOnUse'))
  action = action or 'destroy'
  if not team or GONE[state] then redis.call('ZREM', P..':expiries', id)
  elseif extends == 'true' and seconds and isUsed(id) then extendEnd(id, now + seconds * 1000, true)
  elseif isUnderWay(id, action) then redis.call('ZADD', P..':expiries', string.format('%.0f', now + again), id)
  else
    redis.call('ZADD', P..':expiries', untilMs, id)
    out[#out+1] = {id, due[i + 1], untilMs, team, action}
  end
end
return {#due == 2 * page and 1 or 0, out}
`);

const TakenOne = z.tuple([SandboxId, z.string(), z.string(), TeamId, TtlAction]);
const Taken = z.tuple([z.number(), z.array(TakenOne)]);

export function startExpiry(context: WorkerContext): Disposable {
  return startEvery(
    LOOK_MS,
    () => expireSandboxes(context),
    (error) => context.log.warn({ err: error }, "could not look for sandboxes whose time is up yet"),
  );
}

/** `now`: in place of Redis' clock, by which the ends were set. */
export async function expireSandboxes(context: WorkerContext, now?: () => number): Promise<void> {
  const { redis, keys } = context;
  const settings = [keys.prefix, PAGE, TAKEN_MS, ASK_AGAIN_MS];
  for (let more = 1; more === 1; ) {
    const reply = await runScript(redis, TAKE_DUE, [keys.open], [...settings, now?.() ?? ""]);
    const [rest, taken] = Taken.parse(reply);
    const asked = await askOperations(context, taken.map(toEnd));
    const done = taken.flatMap(([id, , until], at) => {
      const { log } = context;
      const accepted = asked[at];
      if (accepted === undefined || accepted instanceof FleetError) return []; // it has ended meanwhile
      log.info({ sandbox: id, operation: accepted.id, why: "its time is up" }, "the clockwork asks for its end");
      return [id, until, Number(until) - TAKEN_MS + ASK_AGAIN_MS];
    });
    // A crash before this finds it under way.
    if (done.length > 0) await runScript(redis, POSTPONE, [keys.expiries], done);
    more = rest;
  }
}

function toEnd([id, dueAt, , team, action]: z.output<typeof TakenOne>) {
  const kind: JobName = action === "destroy" ? "destroy" : "power";
  const rest = action === "destroy" ? {} : { action, allowStop: true, ifExpired: true };
  const input = parseInput(kind, { sandboxId: id, ...rest });
  return { sandbox: { id, team }, kind, input, idempotencyKey: `ttl ${id} ${dueAt}` };
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
