/** From an HTTP request to what decides about it, and to what the service may see of it. */
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { LINK_COOKIE } from "../../shared/links.ts";
import { parseApiKey } from "../../shared/state/api-keys.ts";
import { parseHostHeader } from "../../shared/url-pattern.ts";

/** Where else an API key may be than in `Authorization: Bearer`. */
const KEY_HEADER = "x-api-key";
/** Ours, set by the gate and its proxy only: what a client sends under these names goes no further. */
const OWN_HEADERS = /^x-fleet-/;
/** Says of which service a browser's state is; the prefix binds it to its very host, over HTTPS. */
export const MARK_COOKIE = "__Host-fleet_sandbox";
const OWN_COOKIES = [LINK_COOKIE, MARK_COOKIE];

/** What changes nothing and may be sent twice, as RFC 9110 has it (9.2.1). */
export const isSafe = (method: string): boolean => ["GET", "HEAD", "OPTIONS"].includes(method);

export interface Shown {
  host: string | null;
  cookies: ReadonlyMap<string, string>;
  /** An API key of ours, if one is shown. */
  key: { id: string; secret: string } | null;
}

export function readRequest({ headers, rawHeaders }: IncomingMessage): Shown {
  // Node joins or drops repeated headers; two hosts mean that somebody in between may have taken the other.
  const hosts = rawHeaders.filter((name, at) => at % 2 === 0 && name.toLowerCase() === "host").length;
  return {
    host: hosts === 1 ? parseHostHeader(headers.host) : null,
    cookies: parseCookies(headers.cookie),
    key: findKey(headers),
  };
}

function findKey(headers: IncomingHttpHeaders): Shown["key"] {
  const [, bearer = ""] = /^Bearer +(\S+)$/i.exec(headers.authorization ?? "") ?? [];
  const header = headers[KEY_HEADER];
  return parseApiKey(bearer) ?? parseApiKey(typeof header === "string" ? header : "");
}

/** The first of a name counts, as with most servers; a name twice is somebody's trick. */
export function parseCookies(header = ""): ReadonlyMap<string, string> {
  const cookies = new Map<string, string>();
  const twice = new Set<string>();
  for (const part of header.split(";")) {
    const at = part.indexOf("=");
    const name = part.slice(0, at).trim();
    if (at <= 0) continue;
    if (cookies.has(name)) twice.add(name);
    cookies.set(name, part.slice(at + 1).trim());
  }
  if (twice.has(LINK_COOKIE)) cookies.delete(LINK_COOKIE);
  return cookies;
}

/** Takes the gate's own credentials out of a request's headers, in place: no service ever sees them. Whether there were any. */
export function stripCredentials(headers: IncomingHttpHeaders): boolean {
  let isChanged = false;
  const drop = (name: string) => {
    delete headers[name];
    isChanged = true;
  };
  for (const name of Object.keys(headers)) if (OWN_HEADERS.test(name)) delete headers[name];
  const key = headers[KEY_HEADER];
  if (typeof key === "string" && parseApiKey(key) !== null) drop(KEY_HEADER);
  const [, bearer = ""] = /^Bearer +(\S+)$/i.exec(headers.authorization ?? "") ?? [];
  if (parseApiKey(bearer) !== null) drop("authorization");
  const parts = (headers.cookie ?? "").split(";").map((part) => part.trim());
  const kept = parts.filter((part) => !OWN_COOKIES.some((name) => part.startsWith(`${name}=`)));
  if (kept.length === parts.length) return isChanged;
  drop("cookie");
  const cookie = kept.filter(Boolean).join("; ");
  if (cookie !== "") headers.cookie = cookie;
  return isChanged;
}
