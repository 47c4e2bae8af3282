/**
 * Secrets of operations and sandboxes (environment, input, exec token), sealed with AES-256-GCM under keys of their own in Redis.
 * They are deleted by the same atomic step that ends their owner.
 */
import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { z } from "zod";
import { FleetError } from "../errors.ts";
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "./keys.ts";
import type { Command } from "./operations.ts";

/** What is sealed for one owner. */
const Sealed = z.object({
  env: z.record(z.string(), z.string()).optional(),
  /** What a command reads, in base64. */
  stdin: z.string().optional(),
  execToken: z.string().optional(),
});
export type SecretValues = z.output<typeof Sealed>;

export interface SecretStore {
  /**
   * Seals `values` for an operation that is about to be asked for; they go by themselves unless it is accepted in time.
   * Throws `not_configured` without a key.
   */
  put(owner: string, values: SecretValues, options: { expiresInSec: number }): Promise<void>;
  /** The same for a sandbox, as part of a fenced write: a run that lost its lock must not put another token in place. */
  toCommand(owner: string, values: SecretValues): Command;
  /** For an owner that never came to be; others lose theirs at their end. */
  remove(owner: string): Promise<void>;
  /** Empty when there is nothing. Throws `not_configured` when no key opens it. */
  get(owner: string): Promise<SecretValues>;
}

/** `keyring`: 32-byte keys; the first seals, all open. */
export function createSecretStore(
  redis: RedisConnection,
  keys: Keys,
  keyring: readonly Buffer[] | undefined,
): SecretStore {
  const sealed = (owner: string, values: SecretValues): string => {
    const [key] = keyring ?? [];
    if (!key) {
      throw new FleetError(
        "not_configured",
        "FLEET_SECRET_KEY is missing; it seals env, stdin and tokens (openssl rand -hex 32)",
        { facts: { variables: ["FLEET_SECRET_KEY"] } },
      );
    }
    return seal(key, owner, JSON.stringify(values));
  };
  return {
    async put(owner, values, { expiresInSec }) {
      await redis.set(keys.secret(owner), sealed(owner, values), "EX", expiresInSec);
    },
    toCommand: (owner, values) => ["SET", keys.secret(owner), sealed(owner, values)],
    async remove(owner) {
      await redis.del(keys.secret(owner));
    },
    async get(owner) {
      const sealed = await redis.get(keys.secret(owner));
      if (sealed === null) return {};
      return Sealed.parse(JSON.parse(open(keyring ?? [], owner, sealed)));
    },
  };
}

const keyId = (key: Buffer) => createHash("sha256").update(key).digest("hex").slice(0, 8);

/** keyId.nonce.tag.text; the owner is authenticated with it, so that one's secret can't be put under another's name. */
export function seal(key: Buffer, owner: string, text: string): string {
  const nonce = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(Buffer.from(owner));
  const body = Buffer.concat([cipher.update(text, "utf8"), cipher.final()]);
  return [keyId(key), ...[nonce, cipher.getAuthTag(), body].map((part) => part.toString("base64url"))].join(".");
}

export function open(keyring: readonly Buffer[], owner: string, sealed: string): string {
  const [id, ...parts] = sealed.split(".");
  const [nonce, tag, body] = parts.map((part) => Buffer.from(part, "base64url"));
  const key = keyring.find((one) => keyId(one) === id);
  if (!key || !nonce || !tag || !body) {
    throw new FleetError("not_configured", "a secret was sealed with another FLEET_SECRET_KEY; list that key too", {
      facts: { variables: ["FLEET_SECRET_KEY"], owner },
    });
  }
  const decipher = createDecipheriv("aes-256-gcm", key, nonce).setAAD(Buffer.from(owner)).setAuthTag(tag);
  return Buffer.concat([decipher.update(body), decipher.final()]).toString("utf8");
}
