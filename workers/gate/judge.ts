/** What decides about a request, read from it and from Redis: its route, its key, how often its sender was wrong. */
import type { IncomingMessage } from "node:http";
import { toLinkKeys } from "../../shared/links.ts";
import { type ApiKey, createApiKeyStore } from "../../shared/state/api-keys.ts";
import type { WorkerContext } from "../context.ts";
import { createCookieCheck } from "./check-cookie.ts";
import { type Decision, decide, type Rules } from "./decide.ts";
import { inTime } from "./in-time.ts";
import { createLimiter } from "./limiter.ts";
import type { Registry } from "./registry.ts";
import { readRequest, type Shown } from "./request.ts";

/** A key that was revoked is forgotten by a message; should that be lost, after this long. */
const KEY_MS = 5_000;
/** Wrong keys, links and cookies from one address. */
const FAILURES = { most: 60, perMs: 60_000 };

/** Of a request, as its client or the proxy in front says. */
export interface AskedTarget {
  method: string;
  /** Path with query. */
  target: string;
  upgrade: boolean;
}

export type Limited = { is: "limited"; reason: string };

export interface Judge {
  ask(request: IncomingMessage, asked: AskedTarget, client: string): Promise<Decision | Limited>;
  forgetKey(id: string): void;
}

export function createJudge({ config, redis, keys }: WorkerContext, registry: Registry): Judge {
  const apiKeys = createApiKeyStore(redis, keys);
  const remembered = new Map<string, { key: Promise<ApiKey | null>; until: number }>();
  const failures = createLimiter(FAILURES);
  const linkKeys = toLinkKeys(config.FLEET_SECRET_KEY);
  const checkCookie = createCookieCheck(linkKeys);
  const appOrigins = new Set(config.GATE_APP_ORIGINS);
  const loadKey = ({ id }: NonNullable<Shown["key"]>) => {
    const known = remembered.get(id);
    if (known && known.until > performance.now()) return known.key;
    if (remembered.size > 10_000) remembered.clear();
    const key = inTime(apiKeys.load(id));
    remembered.set(id, { key, until: performance.now() + KEY_MS });
    key.catch(() => remembered.delete(id));
    return key;
  };
  return {
    async ask(request, { method, target, upgrade }, client) {
      if (failures.isOver(client))
        return { is: "limited", reason: "too many wrong keys and links from your address; wait a minute" };
      const { host, cookies, key } = readRequest(request);
      if (host === null) return { is: "refused", status: 400, reason: "the Host header is not a host name" };
      const route = await registry.find(host);
      const apiKey = key && { secret: key.secret, known: await loadKey(key) };
      const rules: Rules = { linkKeys, checkCookie, appOrigins, nowSec: Math.floor(Date.now() / 1_000) };
      const { origin } = request.headers;
      const asked = { method, host, target, upgrade, origin, cookies, apiKey: apiKey ?? undefined };
      const decision = decide(asked, route, rules);
      // A page without its link is no attack; a wrong key, link or cookie may be one.
      if (decision.is === "refused" && decision.status === 403) failures.count(client);
      return decision;
    },
    forgetKey: (id) => void remembered.delete(id),
  };
}
