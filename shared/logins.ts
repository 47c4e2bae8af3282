/** Who may see the ops pages: a role, a name and a hash of the password, as OPS_LOGINS lists them. */
import { randomBytes, type ScryptOptions, scrypt, timingSafeEqual } from "node:crypto";
import { z } from "zod";

/** A viewer looks; an operator acts. */
export const OPS_ROLES = ["viewer", "operator"] as const;
export type OpsRole = (typeof OPS_ROLES)[number];

export interface Login {
  role: OpsRole;
  name: string;
  salt: Buffer;
  hash: Buffer;
}

/** 32 MiB and about a tenth of a second a try. */
const COST: ScryptOptions = { N: 32_768, r: 8, p: 1, maxmem: 64 * 1_048_576 };
const HASH_BYTES = 32;
const LEAST_LENGTH = 12;

const derive = (password: string, salt: Buffer): Promise<Buffer> =>
  new Promise((resolve, reject) =>
    scrypt(password.normalize("NFC"), salt, HASH_BYTES, COST, (error, key) => (error ? reject(error) : resolve(key))),
  );

export const LoginName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/, "must be 1 to 64 letters, digits, '.', '_', '@' or '-'");
export const LoginPassword = z
  .string()
  .min(LEAST_LENGTH, `must have at least ${LEAST_LENGTH} characters`)
  .max(256, "must have at most 256 characters");

/** The entry of OPS_LOGINS: `role:name:salt.hash`. */
export async function formatLogin(role: OpsRole, name: string, password: string): Promise<string> {
  const salt = randomBytes(16);
  const hash = await derive(password, salt);
  return `${role}:${name}:${salt.toString("base64url")}.${hash.toString("base64url")}`;
}

const ENTRY = /^(viewer|operator):([A-Za-z0-9][A-Za-z0-9._@-]{0,63}):([\w-]{22})\.([\w-]{43})$/;

export function parseLogin(text: string): Login | null {
  const [, role, name, salt, hash] = ENTRY.exec(text) ?? [];
  if (name === undefined || salt === undefined || hash === undefined) return null;
  return {
    role: role === "operator" ? "operator" : "viewer",
    name,
    salt: Buffer.from(salt, "base64url"),
    hash: Buffer.from(hash, "base64url"),
  };
}

/** Takes as long for a name that is not there. */
const NOBODY: Login = { role: "viewer", name: "", salt: Buffer.alloc(16), hash: Buffer.alloc(HASH_BYTES) };

/** The login of this name and password; null when there is none. */
export async function findLogin(logins: readonly Login[], name: string, password: string): Promise<Login | null> {
  const login = logins.find((one) => one.name === name) ?? NOBODY;
  const same = timingSafeEqual(await derive(password, login.salt), login.hash);
  return same && login !== NOBODY ? login : null;
}
