/** Pools as they stand, for pages and metrics: read from Redis alone. */
import type { PoolCounts, PoolSettings } from "../../shared/state/pools.ts";
import { isProvisional, type SandboxState } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import type { Tally } from "./all-sandboxes.ts";

export interface PoolRow extends Omit<PoolCounts, "fills" | "since" | "rate" | "seen" | "at" | "failedAt"> {
  template: string;
  /** Undefined: it was removed, and its members are going. */
  settings: PoolSettings | undefined;
  /** Members that provisions may claim, that run and can't be claimed just now, and that are being made. */
  ready: number;
  silent: number;
  making: number;
}

/** `tallies`: of all sandboxes; those of no pool are passed over. */
export async function readPools({ pools, redis, keys }: WorkerContext, tallies: readonly Tally[]): Promise<PoolRow[]> {
  const warm = new Map<string, number>();
  const making = new Map<string, number>();
  for (const { pool, state, count } of tallies) {
    if (pool === null) continue;
    const counts = state === "warm" ? warm : isProvisional(state as SandboxState) ? making : undefined; // as it was written
    counts?.set(pool, (counts.get(pool) ?? 0) + count);
  }
  const all = await pools.all();
  const templates = [...new Set([...all.keys(), ...warm.keys(), ...making.keys()])].sort();
  return Promise.all(
    templates.map(async (template): Promise<PoolRow> => {
      const [counts, ready] = await Promise.all([
        pools.counts(template),
        redis.zcount(keys.poolReady(template), "(0", "+inf"),
      ]);
      return {
        ...counts,
        template,
        settings: all.get(template),
        ready,
        silent: Math.max(0, (warm.get(template) ?? 0) - ready),
        making: making.get(template) ?? 0,
      };
    }),
  );
}
