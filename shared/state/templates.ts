/** Templates that the fleet made: each team's own, known to placement from the moment of their operation's end. */
import { z } from "zod";
import { SandboxId, type TeamId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { decodeText, type PassOver, readable } from "./codec.ts";
import { Replica } from "./inventory.ts";
import type { Keys } from "./keys.ts";
import type { Command } from "./operations.ts";

export const Template = z.object({
  id: SandboxId,
  /** ms since the epoch. */
  createdAt: z.number(),
  replica: Replica,
});
export type Template = z.output<typeof Template>;

/** For the write that ends its operation. */
export const toTemplateCommand = (keys: Keys, team: TeamId, template: Template): Command => [
  "HSET",
  keys.templates(team),
  template.id,
  JSON.stringify(template),
];

/** For the write that ends the operation that made a replica. */
export const toCopyCommand = (keys: Keys, copy: Template): Command => [
  "HSET",
  keys.replicas,
  copy.id,
  JSON.stringify(copy),
];

/** Replicas that the fleet made, of all teams' templates: whoever may use the one may use the other. */
export async function loadCopies(redis: RedisConnection, keys: Keys, passOver: PassOver): Promise<Template[]> {
  return decodeAll(await redis.hgetall(keys.replicas), passOver);
}

export async function loadTemplates(
  redis: RedisConnection,
  keys: Keys,
  team: TeamId,
  passOver: PassOver,
): Promise<Template[]> {
  return decodeAll(await redis.hgetall(keys.templates(team)), passOver);
}

const decodeAll = (hash: Readonly<Record<string, string>>, passOver: PassOver): Template[] =>
  readable(Object.entries(hash), ([id, text]) => decodeText(Template, text, `template ${id}`), passOver);
