/** The event stream: every state change of a sandbox and end of an operation, ordered, replayable from a cursor. */
import { z } from "zod";
import { FleetError } from "../errors.ts";
import { BatchId, OperationId, SandboxId, TeamId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "./keys.ts";
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

const FleetEventSchema = z.discriminatedUnion("type", [
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
]);
export type FleetEvent = z.output<typeof FleetEventSchema>;
export type FleetEventType = FleetEvent["type"];

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
 * Passes over what this version does not know: a newer one may write to the same stream.
 * `redis` is used by this call alone while it waits.
 */
export async function readEvents(
  redis: RedisConnection,
  keys: Keys,
  after: string,
  blockMs: number,
): Promise<{ events: FleetEvent[]; cursor: string }> {
  const reply = await redis.xread("COUNT", 500, "BLOCK", blockMs, "STREAMS", keys.events, after);
  const entries = reply?.[0]?.[1] ?? [];
  const events = entries.flatMap(([cursor, fields]) => toEvent(cursor, fields) ?? []);
  return { events, cursor: entries.at(-1)?.[0] ?? after };
}

function toEvent(cursor: string, fields: readonly string[]): FleetEvent | null {
  const raw: Record<string, unknown> = { cursor };
  for (let at = 0; at + 1 < fields.length; at += 2) raw[fields[at] ?? ""] = fields[at + 1];
  try {
    return FleetEventSchema.parse({ ...raw, data: JSON.parse(String(raw["data"] ?? "{}")) });
  } catch {
    return null;
  }
}

/** Refuses a cursor that lies before what is kept: events after it may be gone. */
export async function assertKept(redis: RedisConnection, keys: Keys, after: string): Promise<void> {
  if (after === "0" || after === "$") return;
  const [oldest] = await redis.xrange(keys.events, "-", "+", "COUNT", 1);
  if (oldest && compareCursors(after, oldest[0]) < 0 && (await redis.xlen(keys.events)) >= 100_000) {
    throw new FleetError(
      "invalid_input",
      `after: events since ${after} are no longer all kept; begin at ${oldest[0]} or 0`,
      {
        facts: { fields: ["after"], oldest: oldest[0] },
      },
    );
  }
}

/** Negative, zero or positive, as `a` lies before, at or after `b`. */
export function compareCursors(a: string, b: string): number {
  const [aMs = 0, aSeq = 0] = a.split("-").map(Number);
  const [bMs = 0, bSeq = 0] = b.split("-").map(Number);
  return aMs - bMs || aSeq - bSeq;
}
