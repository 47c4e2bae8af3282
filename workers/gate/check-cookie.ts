/** Cookies that links were exchanged for: each of a page's requests shows the same one, so those that were valid are remembered. */
import type { ExposedService } from "../../shared/jobs/fields.ts";
import { toExpirySec, verifyLink } from "../../shared/links.ts";
import type { Route } from "./registry.ts";

/** Of one service. */
const REMEMBERED = 200;

export type CheckCookie = (route: Route, token: string, nowSec: number) => ReturnType<typeof verifyLink>;

/** What is remembered goes with what the registry remembers of the service. */
export function createCookieCheck(keys: readonly Buffer[]): CheckCookie {
  const valid = new WeakMap<ExposedService, Map<string, number>>();
  return ({ sandbox, service }, token, nowSec) => {
    const known = valid.get(service) ?? new Map<string, number>();
    const untilSec = known.get(token);
    if (untilSec !== undefined) return untilSec > nowSec ? "valid" : "expired";
    const target = { sandbox: sandbox.id, service: service.name, epoch: service.epoch };
    const verdict = verifyLink(keys, target, { token, purpose: "cookie", nowSec });
    if (verdict !== "valid") return verdict;
    if (known.size >= REMEMBERED) known.clear();
    valid.set(service, known.set(token, toExpirySec(token)));
    return verdict;
  };
}
