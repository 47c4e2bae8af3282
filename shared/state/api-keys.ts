/** API keys for services with `auth: api_key`: several a team, revocable, stored as hashes only. */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { z } from "zod";
import { TeamId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { decodeText, type PassOver, readable } from "./codec.ts";
import type { Keys } from "./keys.ts";

/** What is kept of a key. Times are ms since the epoch. */
export const ApiKey = z.object({
  id: z.string(),
  team: TeamId,
  name: z.string(),
  /** SHA-256 of the secret, which is 32 random bytes: nothing that could be guessed. */
  hash: z.string(),
  createdAt: z.number(),
  expiresAt: z.number().optional(),
});
export type ApiKey = z.output<typeof ApiKey>;

const KEY = /^fleet_([0-9a-f]{12})_([A-Za-z0-9_-]{43})$/;
const hashOf = (secret: string): Buffer => createHash("sha256").update(secret).digest();

/** Id and secret of a key as it is shown once; null for any other text. */
export function parseApiKey(text: string): { id: string; secret: string } | null {
  const [, id, secret] = KEY.exec(text) ?? [];
  return id === undefined || secret === undefined ? null : { id, secret };
}

/** Whether the secret is this key's, which has not expired; compared in constant time. */
export function isApiKey({ hash, expiresAt }: ApiKey, secret: string, now: number): boolean {
  return timingSafeEqual(Buffer.from(hash, "hex"), hashOf(secret)) && (expiresAt === undefined || expiresAt > now);
}

const decode = ([id, text]: [id: string, text: string]): ApiKey => decodeText(ApiKey, text, `API key ${id}`);

export interface ApiKeyStore {
  /** Returns the key's record and its text, which is shown this once. */
  create(key: { team: TeamId; name: string; expiresAt?: number | undefined }): Promise<{ key: ApiKey; text: string }>;
  list(team: TeamId | undefined, passOver: PassOver): Promise<ApiKey[]>;
  load(id: string): Promise<ApiKey | null>;
  /** False: the team has no such key. Gates forget it at once. */
  revoke(id: string, team: TeamId | undefined): Promise<boolean>;
  /** Forgets those that had expired by then. */
  forgetExpired(at: number): Promise<void>;
}

export function createApiKeyStore(redis: RedisConnection, keys: Keys, now: () => number = Date.now): ApiKeyStore {
  const load = async (id: string): Promise<ApiKey | null> => {
    const text = await redis.hget(keys.apiKeys, id);
    return text === null ? null : decode([id, text]);
  };
  return {
    async create({ team, name, expiresAt }) {
      const id = randomBytes(6).toString("hex");
      const secret = randomBytes(32).toString("base64url");
      const key: ApiKey = { id, team, name, hash: hashOf(secret).toString("hex"), createdAt: now() };
      const record = expiresAt === undefined ? key : { ...key, expiresAt };
      await redis.hset(keys.apiKeys, id, JSON.stringify(record));
      return { key: record, text: `fleet_${id}_${secret}` };
    },
    async list(team, passOver) {
      const all = readable(Object.entries(await redis.hgetall(keys.apiKeys)), decode, passOver);
      return all.filter((key) => team === undefined || key.team === team).sort((a, b) => a.createdAt - b.createdAt);
    },
    load,
    async revoke(id, team) {
      const known = await load(id);
      if (known === null || (team !== undefined && known.team !== team)) return false;
      await redis.multi().hdel(keys.apiKeys, id).publish(keys.wake, `key ${id}`).exec();
      return true;
    },
    async forgetExpired(at) {
      const all = readable(Object.entries(await redis.hgetall(keys.apiKeys)), decode, () => {});
      const over = all.filter(({ expiresAt = at }) => expiresAt < at).map(({ id }) => id);
      if (over.length > 0) await redis.hdel(keys.apiKeys, ...over);
    },
  };
}
