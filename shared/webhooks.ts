/**
 * Webhook messages and their signatures, as in https://www.standardwebhooks.com: what is signed is `id.timestamp.body`, so
 * that no part of a message can be used with another.
 */
import { createHmac } from "node:crypto";
import type { FleetEvent } from "./state/events.ts";

export const ID_HEADER = "webhook-id";
export const TIMESTAMP_HEADER = "webhook-timestamp";
export const SIGNATURE_HEADER = "webhook-signature";

/** What a job of a target's queue carries. */
export interface WebhookJob {
  /** The same in each try, for whoever wants each message once. */
  id: string;
  message: WebhookMessage;
}

/** A message's body. */
export type WebhookMessage =
  | { type: FleetEvent["type"]; timestamp: string; data: FleetEvent }
  /** Events between these cursors were removed before they were on their way. */
  | { type: "webhook.missed"; timestamp: string; data: { after: string; oldest: string | null } }
  | { type: "webhook.test"; timestamp: string; data: Record<string, never> };

export interface Signed {
  id: string;
  /** Seconds since the epoch. */
  timestampSec: number | string;
  body: string | Uint8Array;
}

export const hmacOf = (secret: Uint8Array, { id, timestampSec, body }: Signed): Buffer =>
  createHmac("sha256", secret).update(`${id}.${timestampSec}.`).update(body).digest();

/** The header that says it: one signature a secret. */
export const toSignatures = (secrets: readonly Uint8Array[], signed: Signed): string =>
  secrets.map((secret) => `v1,${hmacOf(secret, signed).toString("base64")}`).join(" ");

export const toEventJob = (event: FleetEvent): WebhookJob => ({
  id: `evt_${event.cursor}`,
  message: { type: event.type, timestamp: new Date(event.at).toISOString(), data: event },
});
