/** Says so where nobody is there to do what is waited for: it would wait in silence for a day. */
import type { Fleet } from "../index.ts";
import { note } from "./progress.ts";
import type { Terminal } from "./terminal.ts";

/** A worker that is there has begun by then, or is busy. */
const PATIENCE_MS = 3_000;

export function watchForWorkers(fleet: Fleet, terminal: Terminal): Disposable {
  let over = false;
  const look = async () => {
    const { redis, workers } = await fleet.health(); // never throws
    if (over || !redis.ok || workers.ok) return;
    const { seenMsAgo } = workers;
    const since = seenMsAgo === undefined ? "has been seen here" : `was seen for ${Math.round(seenMsAgo / 1_000)} s`;
    const where = "is one started, with the REDIS_URL and FLEET_PREFIX of this command?";
    note(terminal, `fleet: no worker ${since}; this waits until one comes: ${where}`);
  };
  const timer = setTimeout(look, PATIENCE_MS);
  return {
    [Symbol.dispose]() {
      over = true;
      clearTimeout(timer);
    },
  };
}
