/**
 * Secrets of operations and sandboxes (environment, input, exec token), sealed with AES-256-GCM under keys of their own in Redis.
 * They are deleted by the same atomic step that ends their owner.
 */
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createSecretKey,
  type KeyObject,
  randomBytes,
} from "node:crypto";
import { z } from "zod";
import { FleetError } from "../errors.ts";
import type { SandboxId } from "../ids.ts";
import { BuildFile } from "../jobs/build.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { remember } from "../remember.ts";
import type { Keys } from "./keys.ts";
import type { Command } from "./operations.ts";

/** What is sealed for one owner. */
const Sealed = z.object({
  env: z.record(z.string(), z.string()).optional(),
  /** What a command reads, in base64. */
  stdin: z.string().optional(),
  execToken: z.string().optional(),
  /** Of a build: see `shared/jobs/build.ts`. */
  files: z.array(BuildFile).optional(),
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
  /** The same for what was read already. */
  open(owner: string, sealed: string | null): SecretValues;
  /** As `open`, for a sandbox: what came out stays in this process for a while, since its next command asks for the same. */
  openSandbox(sandbox: SandboxId, sealed: string | null): SecretValues;
}

/** `keyring`: 32-byte keys; the first seals, all open. */
export function createSecretStore(
  redis: RedisConnection,
  keys: Keys,
  keyring: readonly Buffer[] | undefined,
): SecretStore {
  const sealed = (owner: string, values: SecretValues): string =>
    seal(sealingKey(keyring), owner, JSON.stringify(values));
  const openValues = (owner: string, sealed: string | null): SecretValues =>
    sealed === null ? {} : Sealed.parse(JSON.parse(open(keyring ?? [], owner, sealed)));
  const openKnown = remember(
    (text): SecretValues => {
      const [owner = "", sealed = ""] = text.split(" ");
      return openValues(owner, sealed);
    },
    { most: 256 },
  );
  return {
    async put(owner, values, { expiresInSec }) {
      await redis.set(keys.secret(owner), sealed(owner, values), "EX", expiresInSec);
    },
    toCommand: (owner, values) => ["SET", keys.secret(owner), sealed(owner, values)],
    async remove(owner) {
      await redis.del(keys.secret(owner));
    },
    get: async (owner) => openValues(owner, await redis.get(keys.secret(owner))),
    open: openValues,
    openSandbox: (sandbox, sealed) => (sealed === null ? {} : openKnown(`${sandbox} ${sealed}`)),
  };
}

interface PreparedKey {
  /** What names it in sealed texts. */
  readonly id: string;
  readonly object: KeyObject;
}

const prepared = new WeakMap<Buffer, PreparedKey>();

/** Both take as long to make as a small text takes to open. */
function prepare(key: Buffer): PreparedKey {
  const known = prepared.get(key);
  if (known) return known;
  const id = createHash("sha256").update(key).digest("hex").slice(0, 8);
  const made = { id, object: createSecretKey(key) };
  prepared.set(key, made);
  return made;
}

/** keyId.nonce.tag.text; the owner is authenticated with it, so that one's secret can't be put under another's name. */
export function seal(key: Buffer, owner: string, text: string): string {
  const sealed = sealBytes(key, owner, Buffer.from(text));
  const parts = [sealed.subarray(ID, NONCE), sealed.subarray(NONCE, TAG), sealed.subarray(TAG)];
  return [prepare(key).id, ...parts.map((part) => part.toString("base64url"))].join(".");
}

export function open(keyring: readonly Buffer[], owner: string, sealed: string): string {
  const [id = "", ...parts] = sealed.split(".");
  const bytes = [Buffer.from(id, "hex"), ...parts.map((part) => Buffer.from(part, "base64url"))];
  return openBytes(keyring, owner, Buffer.concat(bytes)).toString("utf8");
}

/** Where the key's id, the nonce and the tag end in sealed bytes; the text follows. */
const [ID, NONCE, TAG] = [4, 16, 32];

/** As `seal`, for bytes, and as compact as they. */
export function sealBytes(key: Buffer, owner: string, bytes: Uint8Array): Buffer {
  const nonce = randomBytes(NONCE - ID);
  const { id, object } = prepare(key);
  const cipher = createCipheriv("aes-256-gcm", object, nonce).setAAD(Buffer.from(owner));
  const body = [cipher.update(bytes), cipher.final()];
  return Buffer.concat([Buffer.from(id, "hex"), nonce, cipher.getAuthTag(), ...body]);
}

export function openBytes(keyring: readonly Buffer[], owner: string, sealed: Buffer): Buffer {
  const id = sealed.subarray(0, ID).toString("hex");
  const key = keyring.find((one) => prepare(one).id === id);
  if (!key || sealed.length < TAG) {
    throw new FleetError("not_configured", "a secret was sealed with another FLEET_SECRET_KEY; list that key too", {
      facts: { variables: ["FLEET_SECRET_KEY"], owner },
    });
  }
  const decipher = createDecipheriv("aes-256-gcm", prepare(key).object, sealed.subarray(ID, NONCE))
    .setAAD(Buffer.from(owner))
    .setAuthTag(sealed.subarray(NONCE, TAG));
  return Buffer.concat([decipher.update(sealed.subarray(TAG)), decipher.final()]);
}

/** The key that seals. Throws `not_configured` without one. */
export function sealingKey(keyring: readonly Buffer[] | undefined): Buffer {
  const [key] = keyring ?? [];
  if (key) return key;
  throw new FleetError(
    "not_configured",
    "FLEET_SECRET_KEY is missing; it seals env, stdin, tokens and files (openssl rand -hex 32)",
    { facts: { variables: ["FLEET_SECRET_KEY"] } },
  );
}
