/** The event stream: every state change of a sandbox and end of an operation, ordered, replayable from a cursor. */
import { z } from "zod";
import { FleetError } from "../errors.ts";
import { BatchId, OperationId, SandboxId, TeamId } from "../ids.ts";
import { TtlAction } from "../jobs/fields.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";
import { SANDBOX_STATES } from "./records.ts";

const base = {
  /** Position in the stream; pass it as `after` to go on from here. */
  cursor: z.string(),
  /** ms since the epoch. */
  at: z.coerce.number(),
  sandbox: SandboxId,
  team: TeamId,
};

/** Of an operation that is an item of a batch. */
const batched = { batch: BatchId.optional(), item: z.number().optional() };

const Lock = z.object({ node: z.string(), vmid: z.number(), lock: z.string(), text: z.string() });

export const FleetEventSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("operation.accepted"),
    ...base,
    operation: OperationId,
    data: z.object({ kind: z.string(), ...batched }),
  }),
  z.object({ type: z.literal("operation.succeeded"), ...base, operation: OperationId, data: z.object(batched) }),
  z.object({
    type: z.literal("operation.failed"),
    ...base,
    operation: OperationId,
    data: z.object({ code: z.string(), ...batched }),
  }),
  z.object({
    type: z.literal("operation.canceled"),
    ...base,
    operation: OperationId,
    data: z.object({ code: z.string(), ...batched }),
  }),
  z.object({
    type: z.literal("sandbox.changed"),
    ...base,
    operation: OperationId,
    data: z.object({
      state: z.enum(SANDBOX_STATES),
      before: z.enum(SANDBOX_STATES),
      node: z.string().optional(),
      vmid: z.number().optional(),
    }),
  }),
  /** Its TTL is over soon; again where it was extended. `operation`: the one that made it. `expiresAt`: ms since the epoch. */
  z.object({
    type: z.literal("sandbox.expiring"),
    ...base,
    operation: OperationId,
    data: z.object({ expiresAt: z.number(), action: TtlAction }),
  }),
  /** What is kept of it beside its state: `fields` of metadata, ttl, idle, wakeOnHttp, address. */
  z.object({
    type: z.literal("sandbox.updated"),
    ...base,
    operation: OperationId,
    data: z.object({ fields: z.array(z.string()) }),
  }),
  /** A container that no record owned, by the stamp that it carried. */
  z.object({
    type: z.literal("container.removed"),
    ...base,
    operation: OperationId,
    data: z.object({ node: z.string(), vmid: z.number(), reason: z.string() }),
  }),
  /** A container that no record owns, by its stamp, is left for now. `removeAt`: ms since the epoch; absent: never by itself. */
  z.object({
    type: z.literal("container.quarantined"),
    ...base,
    operation: OperationId,
    data: z.object({ node: z.string(), vmid: z.number(), reason: z.string(), removeAt: z.number().optional() }),
  }),
  /** A sandbox's container has a lock that no task holds: PVE refuses every change of it. `text` names the way out. */
  z.object({ type: z.literal("container.locked"), ...base, operation: OperationId, data: Lock }),
  z.object({ type: z.literal("container.unlocked"), ...base, operation: OperationId, data: Lock }),
]);
export type FleetEvent = z.output<typeof FleetEventSchema>;
export type FleetEventType = FleetEvent["type"];
export const EVENT_TYPES = FleetEventSchema.options.map(({ shape }) => shape.type.value);

/** ARGV: type, now, operation, sandbox, team, data JSON. */
const EMIT = withPrelude("emit(unpack(ARGV, 2))\nreturn 'ok'");

/** For what is no part of another write. */
export async function emitEvent(redis: RedisConnection, keys: Keys, event: EventToEmit): Promise<void> {
  const { type, operation, sandbox, team, data } = event;
  const words = [keys.prefix, type, Date.now(), operation, sandbox, team, JSON.stringify(data)];
  await runScript(redis, EMIT, [keys.open], words);
}

type EventToEmit = {
  [Type in FleetEventType]: Omit<Extract<FleetEvent, { type: Type }>, "cursor" | "at">;
}[FleetEventType];

/** A cursor of the stream: `0` is its beginning, `$` its end. */
const Cursor = z.string().regex(/^(0|\$|\d+-\d+)$/, "must be a cursor of an earlier event, 0 or $");

/** Throws `invalid_input` for anything that is not a cursor. */
export function checkCursor(cursor: string): string {
  const parsed = Cursor.safeParse(cursor);
  if (!parsed.success)
    throw new FleetError("invalid_input", "after: must be the cursor of an event, 0 or $", {
      facts: { fields: ["after"] },
    });
  return parsed.data;
}

/** The cursor of the newest event. */
export async function newestCursor(redis: RedisConnection, keys: Keys): Promise<string> {
  const [newest] = await redis.xrevrange(keys.events, "+", "-", "COUNT", 1);
  return newest?.[0] ?? "0-0";
}

/**
 * Reads on from a cursor. Waits up to `blockMs` for the first event; `cursor` is where it got to, `after` when none came.
 * Passes over what this version does not know: a newer one may write to the same stream. Throws `cursor_expired`.
 * `redis` is used by this call alone while it waits.
 */
export async function readEvents(
  redis: RedisConnection,
  keys: Keys,
  after: string,
  blockMs: number,
): Promise<{ events: FleetEvent[]; cursor: string }> {
  const { entries, cursor } = await readEntries(redis, keys, after, blockMs);
  return { events: entries.flatMap(([at, fields]) => toEvent(at, fields) ?? []), cursor };
}

async function readEntries(redis: RedisConnection, keys: Keys, after: string, blockMs: number) {
  const reply = await redis.xread("COUNT", 500, "BLOCK", blockMs, "STREAMS", keys.events, after);
  const entries = reply?.[0]?.[1] ?? [];
  if (entries.length === 0) await assertNotReset(redis, keys, after);
  const whole = entries.slice(0, countUnbroken(after, entries));
  if (whole.length < entries.length && whole.length === 0) throw await expired(redis, keys, after);
  return { entries: whole, cursor: whole.at(-1)?.[0] ?? after };
}

/** How many follow one another: events are numbered without gaps (see `emit`). */
function countUnbroken(after: string, entries: readonly [string, string[]][]): number {
  let before = after;
  const gap = entries.findIndex(([cursor]) => {
    const follows = before === "0" || numberOf(cursor) === numberOf(before) + 1;
    before = cursor;
    return !follows;
  });
  return gap < 0 ? entries.length : gap;
}

function toRecord(fields: readonly string[]): Record<string, string> {
  const record: Record<string, string> = {};
  for (let at = 0; at + 1 < fields.length; at += 2) record[fields[at] ?? ""] = fields[at + 1] ?? "";
  return record;
}

/** Null for what this version does not know. */
export function toEvent(cursor: string, fields: readonly string[]): FleetEvent | null {
  const { data = "{}", ...raw } = toRecord(fields);
  try {
    return FleetEventSchema.parse({ ...raw, cursor, data: JSON.parse(data) });
  } catch {
    return null;
  }
}

/** Throws `cursor_expired` when events after the cursor are no longer all kept, or the cursor is of a stream that is no more. */
export async function assertKept(redis: RedisConnection, keys: Keys, after: string): Promise<void> {
  if (after === "0" || after === "$") return;
  const next = await redis.xrange(keys.events, `(${after}`, "+", "COUNT", 1);
  if (next.length === 0) await assertNotReset(redis, keys, after);
  else if (countUnbroken(after, next) === 0) throw await expired(redis, keys, after);
}

/** After a cursor beyond the end nothing would come until the stream had got there again. */
async function assertNotReset(redis: RedisConnection, keys: Keys, after: string): Promise<void> {
  if (after === "0" || compareCursors(await newestCursor(redis, keys), after) >= 0) return;
  throw await expired(redis, keys, after);
}

async function expired(redis: RedisConnection, keys: Keys, after: string): Promise<FleetError> {
  const [oldest] = await redis.xrange(keys.events, "-", "+", "COUNT", 1);
  const [known] = await redis.xrevrange(keys.events, after, "-", "COUNT", 1);
  // Where the stream was set back, what is left up to the cursor has been seen.
  const resumeAfter = known?.[0] ?? "0";
  const what = oldest === undefined ? "none is kept" : `the oldest that is kept is ${oldest[0]}`;
  return new FleetError(
    "cursor_expired",
    `events after ${after} are missing, ${what}; look at what you follow, then read on after ${resumeAfter}`,
    { facts: { after, oldest: oldest?.[0] ?? null, resumeAfter } },
  );
}

/** Negative, zero or positive, as `a` lies before, at or after `b`. */
export function compareCursors(a: string, b: string): number {
  const [aMs, aNumber] = toNumbers(a);
  const [bMs, bNumber] = toNumbers(b);
  return aMs - bMs || aNumber - bNumber;
}

/** Events are numbered without gaps. */
export const numberOf = (cursor: string): number => toNumbers(cursor)[1];

/** Time in ms, and the event's number. */
function toNumbers(cursor: string): [number, number] {
  const [ms = 0, number = 0] = cursor.split("-").map(Number);
  return [ms, number];
}
