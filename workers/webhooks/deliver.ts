/** One try to deliver a message. */
import { type Dispatcher, request } from "undici";
import type { WebhookTarget } from "../../shared/config-webhooks.ts";
import { FleetError } from "../../shared/errors.ts";
import { ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, toSignatures, type WebhookJob } from "../../shared/webhooks.ts";

/** From the connect to the answer's head. */
const TIMEOUT_MS = 15_000;
/** Of an answer's body, which says nothing to us: read so that the connection can be used again. */
const BODY_LIMIT = 65_536;
const RETRY_AFTER_MOST_SEC = 86_400;

/** Kept with the job. */
export interface Receipt {
  status: number;
  tookMs: number;
}

/** Resolves once the receiver has answered 2xx. Throws `webhook_failed`, `address_refused` or `timeout`; see `toRetryMs`. */
export async function deliver(
  target: WebhookTarget,
  dispatcher: Dispatcher,
  { id, message }: WebhookJob,
  { now = Date.now, timeoutMs = TIMEOUT_MS }: { now?: () => number; timeoutMs?: number } = {},
): Promise<Receipt> {
  const begun = now();
  const signed = { id, timestampSec: Math.floor(begun / 1_000), body: JSON.stringify(message) };
  const reply = await post(
    target,
    dispatcher,
    {
      "content-type": "application/json",
      "user-agent": "sandbox-fleet",
      [ID_HEADER]: id,
      [TIMESTAMP_HEADER]: String(signed.timestampSec),
      [SIGNATURE_HEADER]: toSignatures(target.secrets, signed),
    },
    { body: signed.body, timeoutMs },
  );
  const { statusCode: status, headers } = reply;
  reply.body.dump({ limit: BODY_LIMIT }).catch(() => {});
  if (status >= 200 && status < 300) return { status, tookMs: now() - begun };
  throw toFailure(status, status === 429 || status === 503 ? headers["retry-after"] : undefined, now());
}

async function post(
  { name, url }: WebhookTarget,
  dispatcher: Dispatcher,
  headers: Record<string, string>,
  { body, timeoutMs }: { body: string; timeoutMs: number },
) {
  try {
    return await request(url, { method: "POST", dispatcher, headers, body, signal: AbortSignal.timeout(timeoutMs) });
  } catch (error) {
    if (error instanceof FleetError) throw error;
    if (error instanceof Error && error.name === "TimeoutError")
      throw new FleetError("timeout", `no answer within ${timeoutMs} ms`, { facts: { target: name } });
    // By its code: a text could quote the URL, which may hold a token.
    const why = error instanceof Error && "code" in error ? String(error.code) : "the connection broke";
    throw new FleetError("webhook_failed", why, { cause: error, facts: { target: name } });
  }
}

function toFailure(status: number, retryAfter: string | string[] | undefined, now: number): FleetError {
  const text = status >= 300 && status < 400 ? `answered ${status}; redirects are not followed` : `answered ${status}`;
  const wait = toSeconds(String(retryAfter ?? ""), now);
  return new FleetError("webhook_failed", text, {
    facts: { status, ...(wait > 0 ? { retryAfterSec: Math.min(wait, RETRY_AFTER_MOST_SEC) } : {}) },
  });
}

/** Retry-After is a number of seconds, or a date. */
function toSeconds(retryAfter: string, now: number): number {
  if (/^\d+$/.test(retryAfter)) return Number(retryAfter);
  const at = Date.parse(retryAfter);
  return Number.isNaN(at) ? 0 : Math.ceil((at - now) / 1_000);
}

const FIRST_MS = 1_000;
const LAST_MS = 4 * 3_600_000;
const GONE = 410;

/**
 * How long until the next try, after `attempt` of them: 1 s, 3 s, 9 s … 4 h, ±25 %, and no sooner than the receiver wants.
 * -1, which is BullMQ's word for never, where it says that it is gone. Pure; `random` is in [0, 1).
 */
export function toRetryMs(error: unknown, attempt: number, random: number): number {
  const { status, retryAfterSec = 0 } = error instanceof FleetError ? error.facts : {};
  if (status === GONE) return -1;
  const base = Math.min(FIRST_MS * 3 ** Math.max(0, attempt - 1), LAST_MS);
  return Math.max(Math.round(base * (0.75 + random / 2)), Number(retryAfterSec) * 1_000);
}
