/** Says so where what is waited for can't go on, without a worker or without Redis: it would wait in silence for a day. */
import { setTimeout as pause } from "node:timers/promises";
import type { Fleet, Health } from "../index.ts";
import { note } from "./progress.ts";
import type { Terminal } from "./terminal.ts";

/** A worker that is there has begun by then, or is busy. */
const FIRST_MS = 3_000;
const NEXT_MS = { well: 10_000, trouble: 1_000 };

type Trouble = "no Redis" | "no worker";

export function watchFleet(fleet: Fleet, terminal: Terminal): Disposable {
  const over = new AbortController();
  const watch = async () => {
    let told: Trouble | undefined;
    await pause(FIRST_MS, undefined, { signal: over.signal });
    while (true) {
      const health = await fleet.health(); // never throws
      over.signal.throwIfAborted();
      const trouble = health.redis.ok ? (health.workers.ok ? undefined : "no worker") : "no Redis";
      if (trouble !== told) note(terminal, `fleet: ${toText(trouble, health)}`);
      told = trouble;
      await pause(trouble ? NEXT_MS.trouble : NEXT_MS.well, undefined, { signal: over.signal });
    }
  };
  watch().catch(() => {}); // it is over
  return { [Symbol.dispose]: () => over.abort() };
}

function toText(trouble: Trouble | undefined, { workers: { seenMsAgo } }: Health): string {
  if (trouble === undefined) return "a worker is there again; this goes on";
  if (trouble === "no Redis") return "Redis does not answer; this waits until it does";
  const since = seenMsAgo === undefined ? "has been seen here" : `was seen for ${Math.round(seenMsAgo / 1_000)} s`;
  const where = "is one started, with the REDIS_URL and FLEET_PREFIX of this command?";
  return `no worker ${since}; this waits until one comes: ${where}`;
}
