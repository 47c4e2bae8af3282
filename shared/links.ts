/**
 * Signed links to a service: who holds one gets in until it expires. Bound to the sandbox, which is never used again, and to
 * the service's epoch, which is new with each expose after a hide. Nothing is stored: the signature is the proof.
 */
import { createHmac, hkdfSync, timingSafeEqual } from "node:crypto";

/** Query parameter that carries a link's token. */
export const LINK_PARAMETER = "fleet_link";
/** Cookie that a link is exchanged for; the prefix binds it to its very host, over HTTPS. */
export const LINK_COOKIE = "__Host-fleet_link";

export interface LinkTarget {
  sandbox: string;
  service: string;
  epoch: string;
}

/** A token of one purpose is none of the other: a link that leaks by Referer is not the session. */
export type LinkPurpose = "link" | "cookie";

/** Keys that sign links, from those that seal secrets: the first signs, all verify. */
export const toLinkKeys = (keyring: readonly Buffer[]): Buffer[] =>
  keyring.map((key) => Buffer.from(hkdfSync("sha256", key, "", "sandbox-fleet link", 32)));

function sign(
  key: Buffer,
  { sandbox, service, epoch }: LinkTarget,
  purpose: LinkPurpose,
  expiresAtSec: number,
): Buffer {
  return createHmac("sha256", key)
    .update(JSON.stringify([purpose, sandbox, service, epoch, expiresAtSec]))
    .digest();
}

/** `EXPIRY.SIGNATURE`, the expiry in seconds since the epoch in base 36. */
export function signLink(
  [key]: readonly Buffer[],
  target: LinkTarget,
  { purpose, expiresAtSec }: { purpose: LinkPurpose; expiresAtSec: number },
): string {
  if (key === undefined) throw new Error("a link needs a key");
  const expires = Math.floor(expiresAtSec);
  return `${expires.toString(36)}.${sign(key, target, purpose, expires).toString("base64url")}`;
}

/** When a token ends, as it says itself. */
export const toExpirySec = (token: string): number => Number.parseInt(token.split(".", 1)[0] ?? "", 36);

/** Whether a token lets into the service; compared in constant time. */
export function verifyLink(
  keys: readonly Buffer[],
  target: LinkTarget,
  { token, purpose, nowSec }: { token: string; purpose: LinkPurpose; nowSec: number },
): "valid" | "expired" | "invalid" {
  const [, expiry = "", signature = ""] = /^([0-9a-z]{1,9})\.([A-Za-z0-9_-]{43})$/.exec(token) ?? [];
  if (signature === "") return "invalid";
  const expires = Number.parseInt(expiry, 36);
  const given = Buffer.from(signature, "base64url");
  const signed = keys.some((key) => timingSafeEqual(sign(key, target, purpose, expires), given));
  if (!signed) return "invalid";
  return expires > nowSec ? "valid" : "expired";
}
