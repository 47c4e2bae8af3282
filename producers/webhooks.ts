/**
 * What receives webhooks of the fleet: `import { verifyWebhook } from "sandbox-fleet/webhooks"`. Needs no Redis, and any
 * library of https://www.standardwebhooks.com does the same.
 */
import { timingSafeEqual } from "node:crypto";
import { z } from "zod";
import { WebhookSecret } from "../shared/config-webhooks.ts";
import { FleetError } from "../shared/errors.ts";
import { type FleetEvent, FleetEventSchema } from "../shared/state/events.ts";
import { hmacOf, ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER } from "../shared/webhooks.ts";

export { FleetError } from "../shared/errors.ts";
export type { FleetEvent } from "../shared/state/events.ts";

export interface WebhookRequest {
  /** Of the Fetch API, or as Node has them. */
  headers: { get(name: string): string | null } | Readonly<Record<string, string | readonly string[] | undefined>>;
  /** As it came: parsed and written again it has another signature. */
  body: string | Uint8Array;
}

export interface WebhookOptions {
  /** How old a message may be, and how far ahead, in seconds (300). */
  toleranceSec?: number | undefined;
  /** ms since the epoch. */
  now?: number | undefined;
}

export interface Webhook {
  /** The same whenever the message comes again: which it may, and not in order. */
  id: string;
  /** An event's, `webhook.test`, or `webhook.missed`: events between `data.after` and `data.oldest` never came. */
  type: string;
  data: unknown;
  /** The event; null for another message, or a type that this version does not know. */
  event: FleetEvent | null;
}

const Message = z.object({ type: z.string(), data: z.unknown() });

/**
 * The message, once it is sure that a holder of the secret sent it lately. `secret`: `whsec_…`, or several, of which one must
 * fit. Throws `signature_invalid`, and `not_configured` for a secret that is none.
 */
export function verifyWebhook(
  { headers, body }: WebhookRequest,
  secret: string | readonly string[],
  { toleranceSec = 300, now = Date.now() }: WebhookOptions = {},
): Webhook {
  const [id, timestampSec, signatures] = [ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER].map((name) =>
    readHeader(headers, name),
  );
  if (!id || !timestampSec || !signatures) throw invalid("a header is missing: webhook-id, -timestamp or -signature");
  if (!/^\d{1,12}$/.test(timestampSec)) throw invalid("webhook-timestamp is no time");
  const given = signatures
    .split(" ")
    .flatMap((one) => (one.startsWith("v1,") ? Buffer.from(one.slice(3), "base64") : []));
  const isSigned = toSecrets(secret).some((key) => {
    const right = hmacOf(key, { id, timestampSec, body });
    return given.some((one) => one.length === right.length && timingSafeEqual(one, right));
  });
  if (!isSigned) throw invalid("no signature is of this secret and this body");
  // After the signature: who has no secret learns nothing of our clock.
  if (Math.abs(now / 1_000 - Number(timestampSec)) > toleranceSec)
    throw invalid(`it is not of the last ${toleranceSec} s, or the clocks differ`);
  const message = toMessage(body);
  return { id, type: message.type, data: message.data, event: FleetEventSchema.safeParse(message.data).data ?? null };
}

function readHeader(headers: WebhookRequest["headers"], name: string): string | undefined {
  if (typeof headers["get"] === "function") return headers["get"](name) ?? undefined;
  const [, value] = Object.entries(headers).find(([key]) => key.toLowerCase() === name) ?? [];
  return typeof value === "string" ? value : undefined;
}

function toSecrets(secret: string | readonly string[]): Buffer[] {
  return [secret].flat().map((text) => {
    const parsed = WebhookSecret.safeParse(text);
    if (parsed.success) return parsed.data;
    throw new FleetError("not_configured", `the webhook's secret ${parsed.error.issues[0]?.message}`);
  });
}

function toMessage(body: string | Uint8Array): z.output<typeof Message> {
  try {
    return Message.parse(JSON.parse(typeof body === "string" ? body : Buffer.from(body).toString("utf8")));
  } catch (cause) {
    throw new FleetError("signature_invalid", "the body is no message of a fleet", { cause });
  }
}

const invalid = (why: string): FleetError => new FleetError("signature_invalid", why);
