/** Whether work sent now would be done: what can be told from Redis. */
import { z } from "zod";
import { FleetError, toFleetError } from "../shared/errors.ts";
import { loadInventory } from "../shared/state/inventory.ts";
import type { Parts } from "./parts.ts";

export interface Health {
  /** All of the below. */
  healthy: boolean;
  redis: { ok: boolean; latencyMs: number; error?: string };
  /** Some worker wrote within the last seconds. */
  workers: { ok: boolean; seenMsAgo?: number };
  /** A worker has read the cluster within the last minute, and a node is online. */
  pve: { ok: boolean; readMsAgo?: number; version?: string; nodes: { online: number; total: number } };
}

/** Workers write every second. */
const SILENT_MS = 10_000;
/** They read the cluster every ten seconds; PVE may be slow. */
const STALE_MS = 60_000;
const PATIENCE_MS = 5_000;

/** Never throws, and answers within five seconds. */
export async function checkHealth(parts: Parts): Promise<Health> {
  const begun = performance.now();
  const latencyMs = () => Math.round(performance.now() - begun);
  try {
    const [beat, inventory] = await withinPatience(
      parts.link.request((redis) =>
        Promise.all([redis.hget(parts.keys.pulse, "at"), loadInventory(redis, parts.keys)]),
      ),
    );
    const now = parts.now();
    const seenMsAgo = z.coerce
      .number()
      .transform((at) => Math.max(0, now - at))
      .optional()
      .parse(beat ?? undefined);
    const nodes = inventory?.nodes ?? [];
    const online = nodes.filter((node) => node.online).length;
    const readMsAgo = inventory === null ? undefined : Math.max(0, now - inventory.at);
    const workers = {
      ok: seenMsAgo !== undefined && seenMsAgo < SILENT_MS,
      ...(seenMsAgo === undefined ? {} : { seenMsAgo }),
    };
    const pve = {
      ok: readMsAgo !== undefined && readMsAgo < STALE_MS && online > 0,
      ...(readMsAgo === undefined ? {} : { readMsAgo }),
      ...(inventory === null ? {} : { version: inventory.version }),
      nodes: { online, total: nodes.length },
    };
    return { healthy: workers.ok && pve.ok, redis: { ok: true, latencyMs: latencyMs() }, workers, pve };
  } catch (error) {
    return {
      healthy: false,
      redis: { ok: false, latencyMs: latencyMs(), error: toFleetError(error).message },
      workers: { ok: false },
      pve: { ok: false, nodes: { online: 0, total: 0 } },
    };
  }
}

async function withinPatience<T>(asked: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const error = new FleetError("redis_unavailable", `Redis did not answer within ${PATIENCE_MS} ms`);
    timer = setTimeout(() => reject(error), PATIENCE_MS);
  });
  try {
    return await Promise.race([asked, late]);
  } finally {
    clearTimeout(timer);
  }
}
