/**
 * A host name may have been another sandbox's, whose pages left things in the browser: storage, caches, a service worker
 * that answers in the new one's place. So a service's first response clears them, and a cookie remembers that it has.
 */
import type { IncomingMessage } from "node:http";
import { LINK_COOKIE } from "../../shared/links.ts";
import { isNavigation } from "./answers.ts";
import type { Route } from "./registry.ts";
import { MARK_COOKIE, parseCookies } from "./request.ts";

/** Not "cookies": that would be those of all sandboxes of the domain. */
export const CLEARED = '"cache", "storage"';
const MARK_SEC = 31_536_000;

/** The cookie to set along with the clearing; null: nothing is to be cleared. */
export function toMark(
  { method = "GET", headers }: Pick<IncomingMessage, "method" | "headers">,
  route: Route,
): string | null {
  const cookies = parseCookies(headers.cookie);
  const { epoch } = route.service;
  if (cookies.get(MARK_COOKIE) === epoch) return null;
  // Where a browser keeps no cookies, as in some frames of other sites, each answer would clear what the last one stored.
  const keepsCookies = cookies.has(LINK_COOKIE) || headers["sec-fetch-site"] !== "cross-site";
  const isPage = isNavigation(method, headers) || headers["service-worker"] === "script";
  if (!keepsCookies || !(isPage || cookies.has(LINK_COOKIE))) return null;
  return `${MARK_COOKIE}=${epoch}; Path=/; Max-Age=${MARK_SEC}; Secure; HttpOnly; SameSite=None; Partitioned`;
}
