/** Reads the event stream over a blocking connection of its own, through reconnects. */
import { setTimeout as pause } from "node:timers/promises";
import { defer } from "../deferred.ts";
import { FleetError } from "../errors.ts";
import { closeRedis, type RedisConnection } from "../redis/connect.ts";
import { type FleetEvent, readEvents } from "./events.ts";
import type { Keys } from "./keys.ts";

/** Redis answers at the latest after this long; a connection silent for twice as long is dead and replaced. */
const BLOCK_MS = 5_000;

const RETRY_MS = 200;

/** What a server says while it takes up another role, or starts: the same is answered a moment later, there or elsewhere. */
const isPassing = (error: unknown): boolean =>
  error instanceof Error && /^(UNBLOCKED|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b/.test(error.message);

/** One call at a time. */
export interface EventReader {
  /** The next events after a cursor, and where that got to: `after` itself after 5 s without any. Throws `cursor_expired`. */
  read(after: string): Promise<{ events: FleetEvent[]; cursor: string }>;
  /** Resolves once there is an event after a cursor, or after `forMs`, 5 s at most. */
  wait(after: string, forMs: number): Promise<void>;
  /** Ends a running call at once; it throws. */
  close(): Promise<void>;
}

/** `redis` becomes the reader's own. */
export function openEventReader(redis: RedisConnection, keys: Keys): EventReader {
  let breakOff: ((reason: FleetError) => void) | undefined;
  const replaceIfSilent = () => {
    if (redis.status === "ready") redis.disconnect(true);
  };
  const guarded = async <T>(call: Promise<T>): Promise<T> => {
    // ioredis sends the pending read again on the new connection, from the same cursor, so nothing is passed over.
    const { promise: closed, reject } = defer<never>();
    breakOff = reject;
    const watchdog = setInterval(replaceIfSilent, 2 * BLOCK_MS);
    try {
      return await Promise.race([call, closed]);
    } finally {
      clearInterval(watchdog);
    }
  };
  return {
    async read(after) {
      while (true) {
        try {
          return await guarded(readEvents(redis, keys, after, BLOCK_MS));
        } catch (error) {
          if (!isPassing(error)) throw error;
          await guarded(pause(RETRY_MS));
        }
      }
    },
    async wait(after, forMs) {
      const ms = Math.ceil(Math.min(forMs, BLOCK_MS));
      await guarded(redis.xread("COUNT", 1, "BLOCK", ms, "STREAMS", keys.events, after));
    },
    async close() {
      breakOff?.(new FleetError("shutting_down", "the reader was closed")); // ioredis forgets a read that waits for a reconnect
      await closeRedis(redis);
    },
  };
}
