/** What Redis keeps, by kind of key; and whether it grows: pure but for the reading. */
import { z } from "zod";
import type { RedisConnection } from "../../shared/redis/connect.ts";

export interface Kept {
  count: number;
  bytes: number;
}
export type Sample = ReadonlyMap<string, Kept>;

const Bytes = z.coerce.number();

/** `op:…`, `events`, `jobs completed`: names without ids. */
export function toFamily(key: string, prefix: string): string {
  const [first = "", second, third] = key.slice(prefix.length + 1).split(":");
  const isQueue = first === "place" || first === "control" || first === "warm" || /^(node|exec|webhook)-/.test(first);
  if (!isQueue) return second === undefined ? first : `${first}:…`;
  if (second === undefined) return "job index";
  return /^(op|evt)_|^repeat$|^\d/.test(second) ? `a job${third === undefined ? "" : `'s ${third}`}` : `jobs ${second}`;
}

export async function readSample(redis: RedisConnection, prefix: string): Promise<Sample> {
  const families = new Map<string, Kept>();
  const names = await redis.keys(`${prefix.replaceAll(/[[\]*?\\]/g, "\\$&")}:*`);
  for (let at = 0; at < names.length; at += 1_000) {
    const page = names.slice(at, at + 1_000);
    const pipeline = redis.pipeline();
    for (const name of page) pipeline.memory("USAGE", name);
    const replies = (await pipeline.exec()) ?? [];
    for (const [index, name] of page.entries()) {
      const family = toFamily(name, prefix);
      const { count, bytes } = families.get(family) ?? { count: 0, bytes: 0 };
      const size = Bytes.parse(replies[index]?.[1] ?? 0); // gone meanwhile
      families.set(family, { count: count + 1, bytes: bytes + size });
    }
  }
  return families;
}

/** Growth from the first to the last of some values, along the straight line that fits them best. */
export function growth(values: readonly number[]): number {
  const middle = (values.length - 1) / 2;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const over = values.reduce((sum, value, at) => sum + (at - middle) * (value - mean), 0);
  const under = values.reduce((sum, _, at) => sum + (at - middle) ** 2, 0);
  return under === 0 ? 0 : (over / under) * (values.length - 1);
}

/** Whether that is no more than noise: `share` of the mean, or `floor`. */
export function isFlat(values: readonly number[], { share, floor }: { share: number; floor: number }): boolean {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return growth(values) <= Math.max(floor, share * mean);
}
