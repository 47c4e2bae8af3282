/** Which targets webhooks have, told by the workers that serve them, for whoever has no access to their configuration. */
import { z } from "zod";
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "./keys.ts";

/** Secrets, and what else the URL holds, stay with the workers. */
const PublishedTarget = z.object({
  name: z.string(),
  host: z.string(),
  team: z.string().optional(),
  types: z.array(z.string()).optional(),
  /** When a worker last had it in its configuration, in ms since the epoch. */
  at: z.number(),
});
export type PublishedTarget = z.output<typeof PublishedTarget>;

/** Consumer group of a target; users' own begin with a letter or digit. */
export const webhookGroup = (target: string): string => `:webhook:${target}`;

export async function publishTargets(
  redis: RedisConnection,
  keys: Keys,
  targets: readonly PublishedTarget[],
): Promise<void> {
  if (targets.length === 0) return;
  await redis.hset(keys.webhooks, ...targets.flatMap((target) => [target.name, JSON.stringify(target)]));
}

export async function loadTargets(redis: RedisConnection, keys: Keys): Promise<PublishedTarget[]> {
  const all = Object.values(await redis.hgetall(keys.webhooks)).map((text) => PublishedTarget.parse(JSON.parse(text)));
  return all.sort((a, b) => (a.name < b.name ? -1 : 1));
}

export async function forgetTarget(redis: RedisConnection, keys: Keys, name: string): Promise<void> {
  await redis.hdel(keys.webhooks, name);
}
