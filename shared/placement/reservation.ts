/** What a sandbox takes of its node, as Redis keeps it from its placement to its end: a hash of each node, by sandbox. */
import { z } from "zod";
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "../state/keys.ts";
import type { Command } from "../state/operations.ts";

const Reservation = z.object({
  memoryMib: z.number(),
  /** Nothing is placed by these two. Cores, or where none are set the limit of CPU time in cores; 0: as many as its node has. */
  cores: z.number().optional(),
  swapMib: z.number().optional(),
  /** GiB by storage; "" where that is not known. */
  disks: z.record(z.string(), z.number()),
  /** Of a full clone: GiB that it writes on its storage, and since when (ms) they have all been written. */
  copy: z.object({ storage: z.string(), gib: z.number(), doneAt: z.number().optional() }).optional(),
  /** Sandboxes of one group keep away from each other. */
  group: z.string().optional(),
});
export type Reservation = z.output<typeof Reservation>;

const NOTHING: Reservation = { memoryMib: 0, disks: {} };

/** For the write in which it becomes true. Each change counts, so that readers know which nodes to read again. */
export const reserve = (keys: Keys, node: string, sandbox: string, reservation: Reservation): Command[] => [
  ["HSET", keys.reserved(node), sandbox, JSON.stringify(reservation)],
  ["HINCRBY", keys.reservedChanges, node, 1],
];

/** As `reserve`; takes it back. */
export const unreserve = (keys: Keys, node: string, sandbox: string): Command[] => [
  ["HDEL", keys.reserved(node), sandbox],
  ["HINCRBY", keys.reservedChanges, node, 1],
];

/** What an earlier version wrote, `MEMORY DISK`, is read as well; what nobody wrote takes nothing. */
export function parseReservation(text: string): Reservation {
  if (!text.startsWith("{")) {
    const [memoryMib = 0, gib = 0] = text.split(" ").map(Number);
    return { memoryMib, disks: { "": gib } };
  }
  try {
    return Reservation.safeParse(JSON.parse(text)).data ?? NOTHING;
  } catch {
    return NOTHING;
  }
}

/** What a sandbox has reserved on a node; nothing where it has not. */
export async function loadReservation(
  redis: RedisConnection,
  keys: Keys,
  node: string,
  sandbox: string,
): Promise<Reservation> {
  const text = await redis.hget(keys.reserved(node), sandbox);
  return text === null ? NOTHING : parseReservation(text);
}
