/** Reads the event stream over a blocking connection of its own, through reconnects. */
import { defer } from "../shared/deferred.ts";
import type { FleetError } from "../shared/errors.ts";
import { closeRedis } from "../shared/redis/connect.ts";
import { type FleetEvent, readEvents } from "../shared/state/events.ts";
import type { Keys } from "../shared/state/keys.ts";
import { closedError, type Link } from "./link.ts";

/** Redis answers at the latest after this long; a connection silent for twice as long is dead and replaced. */
const BLOCK_MS = 5_000;

export interface EventReader {
  /** The next events after a cursor, and where that got to: `after` itself after 5 s without any. One call at a time. */
  read(after: string): Promise<{ events: FleetEvent[]; cursor: string }>;
  /** Ends a running read at once; it throws. */
  close(): Promise<void>;
}

export function openEventReader(link: Link, keys: Keys): EventReader {
  const redis = link.openBlocking();
  let breakOff: ((reason: FleetError) => void) | undefined;
  const replaceIfSilent = () => {
    if (redis.status === "ready") redis.disconnect(true);
  };
  return {
    async read(after) {
      // ioredis sends the pending read again on the new connection, from the same cursor, so nothing is passed over.
      const { promise: closed, reject } = defer<never>();
      breakOff = reject;
      const watchdog = setInterval(replaceIfSilent, 2 * BLOCK_MS);
      try {
        return await Promise.race([readEvents(redis, keys, after, BLOCK_MS), closed]);
      } finally {
        clearInterval(watchdog);
      }
    },
    async close() {
      breakOff?.(closedError()); // ioredis forgets a read that waits for a reconnect
      await closeRedis(redis);
    },
  };
}
