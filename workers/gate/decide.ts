/** What becomes of a request at the gate: pure. */
import { LINK_COOKIE, LINK_PARAMETER, type LinkTarget, signLink, toExpirySec, verifyLink } from "../../shared/links.ts";
import { type ApiKey, isApiKey } from "../../shared/state/api-keys.ts";
import type { CheckCookie } from "./check-cookie.ts";
import type { Route } from "./registry.ts";
import { isSafe } from "./request.ts";

/** What of a request decides. */
export interface Asked {
  method: string;
  /** Host name in lower case, without port. */
  host: string;
  /** Path with query, as in the request line. */
  target: string;
  upgrade: boolean;
  origin: string | undefined;
  cookies: ReadonlyMap<string, string>;
  /** The key that the request shows, with what is known of it. */
  apiKey: { secret: string; known: ApiKey | null } | undefined;
}

export interface Rules {
  linkKeys: readonly Buffer[];
  checkCookie: CheckCookie;
  appOrigins: ReadonlySet<string>;
  /** Seconds since the epoch. */
  nowSec: number;
}

export type Decision =
  | { is: "forward"; route: Route }
  /** It sleeps, or is just falling asleep; who asks may wake it. */
  | { is: "asleep"; route: Route }
  /** A link is exchanged for a cookie, and leaves the address bar. */
  | { is: "redirect"; location: string; cookie: string }
  | { is: "refused"; status: 400 | 401 | 403 | 404; reason: string };

const refused = (status: 400 | 401 | 403 | 404, reason: string): Decision => ({ is: "refused", status, reason });

/** One text for what there is not and what is not told, so that nobody learns which sandboxes live. */
export const NO_SERVICE = "no service has this address";

export function decide(asked: Asked, route: Route | null, rules: Rules): Decision {
  if (!/^\/[\x21-\x7e]*$/.test(asked.target)) return refused(400, "the request's target is not a path");
  if (route === null) return refused(404, NO_SERVICE);
  const allowed = checkAuth(asked, route, rules);
  if (allowed !== null) return allowed;
  return route.address === undefined || route.leaving ? { is: "asleep", route } : { is: "forward", route };
}

/** Null: it may pass. */
function checkAuth(asked: Asked, route: Route, rules: Rules): Decision | null {
  switch (route.service.auth) {
    case "none":
      return null;
    case "api_key":
      return checkKey(asked, route, rules);
    case "link":
      return checkLink(asked, route, rules);
  }
}

function checkKey({ apiKey }: Asked, { sandbox }: Route, { nowSec }: Rules): Decision | null {
  if (apiKey === undefined) return refused(401, "this service needs an API key");
  const { known, secret } = apiKey;
  const valid = known !== null && isApiKey(known, secret, nowSec * 1_000) && known.team === sandbox.team;
  return valid ? null : refused(403, "this API key does not open this service");
}

function checkLink(asked: Asked, route: Route, rules: Rules): Decision | null {
  const { linkKeys: keys, nowSec } = rules;
  const target: LinkTarget = { sandbox: route.sandbox.id, service: route.service.name, epoch: route.service.epoch };
  const { token, rest } = takeToken(asked.target);
  if (token !== null && (asked.method === "GET" || asked.method === "HEAD") && !asked.upgrade) {
    const verdict = verifyLink(keys, target, { token, purpose: "link", nowSec });
    if (verdict !== "valid")
      return refused(403, verdict === "expired" ? "this link has expired" : "this is no link to this service");
    return { is: "redirect", location: rest, cookie: toCookie(keys, target, token, nowSec) };
  }
  const cookie = asked.cookies.get(LINK_COOKIE);
  if (cookie === undefined) return refused(401, "this service opens with a link; ask whoever gave you its address");
  const verdict = rules.checkCookie(route, cookie, nowSec);
  if (verdict !== "valid") return refused(403, "your link to this service is void or has expired");
  // Sibling sandboxes are of the same site, so SameSite alone does not keep their pages out.
  const safe = !asked.upgrade && isSafe(asked.method);
  const own = asked.origin === `https://${asked.host}` || (asked.host.endsWith(".localhost") && isOwnOrigin(asked));
  if (!safe && !own && !(asked.origin !== undefined && rules.appOrigins.has(asked.origin)))
    return refused(403, "this request must come from the service's own pages");
  return null;
}

/** For development on `*.localhost`: browsers treat it as secure, and the gate listens on any port. */
function isOwnOrigin({ origin, host }: Asked): boolean {
  return origin !== undefined && URL.canParse(origin) && new URL(origin).hostname === host;
}

/** The link's token, and the target without it. */
function takeToken(target: string): { token: string | null; rest: string } {
  const [path = "/", query = ""] = target.split(/\?(.*)/s);
  const own = (part: string) => part.startsWith(`${LINK_PARAMETER}=`);
  const parts = query.split("&");
  const found = parts.filter(own);
  if (found.length === 0) return { token: null, rest: target };
  const rest = parts.filter((part) => !own(part)).join("&");
  // Two slashes at the beginning would make it another host's address; to browsers a backslash is one, too.
  const clean = path.replace(/^[/\\]+/, "/");
  const token = found.length === 1 ? (found[0] ?? "").slice(LINK_PARAMETER.length + 1) : "";
  return { token, rest: rest === "" ? clean : `${clean}?${rest}` };
}

/** It lasts as long as the link: `token` is a valid one, so its expiry is its own. */
function toCookie(keys: readonly Buffer[], target: LinkTarget, token: string, nowSec: number): string {
  const expiresAtSec = toExpirySec(token);
  const value = signLink(keys, target, { purpose: "cookie", expiresAtSec });
  // Workspaces are embedded in an iframe of another site.
  return `${LINK_COOKIE}=${value}; Path=/; Max-Age=${expiresAtSec - nowSec}; Secure; HttpOnly; SameSite=None; Partitioned`;
}
