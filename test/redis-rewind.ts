/** Redis that loses its last writes, as a power cut under `appendfsync everysec` or a failover to a late replica does. */
import { readdir, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { RedisServer } from "./redis.ts";

/**
 * Remembers how far Redis has written; the function returned takes it back there, to be called while the server is down.
 * Its file only grows, so cutting it is going back; where Redis began a new file meanwhile, nothing is lost.
 */
export async function markRedis({ dataDir }: RedisServer): Promise<() => Promise<void>> {
  if (dataDir === undefined) throw new Error("only a server process of ours can be taken back in time");
  const folder = join(dataDir, "appendonlydir");
  const names = (await readdir(folder)).filter((name) => name.endsWith(".incr.aof"));
  const files = await Promise.all(
    names.map(async (name) => ({ path: join(folder, name), size: (await stat(join(folder, name))).size })),
  );
  return async () => {
    for (const { path, size } of files) await truncate(path, size);
  };
}
