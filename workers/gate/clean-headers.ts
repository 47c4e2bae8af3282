/** What of a request's headers its service may see, and of a service's response whoever asked. */
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { stripCredentials } from "./request.ts";

/** Of one connection only (RFC 9110, 7.6.1), along with those that `Connection` names. */
const HOP_BY_HOP = [
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "upgrade",
];
/**
 * What proxies say of a request's way, and of whom and for what address it is; some servers read underscores as hyphens. Those
 * of Cloudflare are among them: a service can't tell whether that is in front, and whom a request is from it is told by us.
 */
const FORWARDED = /^(forwarded|x-forwarded.*|.*real-ip|.*client-?ip|cf-.*|x-original-.*|x-rewrite-url)$/;

export interface Way {
  /** Whose request it is. */
  client: string;
  /** Whether a proxy in front is believed that the client speaks HTTPS. */
  isSecure: boolean;
}

/** In place. What clients say of a request's way themselves does not count. */
export function cleanRequest({ headers }: Pick<IncomingMessage, "headers">, { client, isSecure }: Way): void {
  stripCredentials(headers);
  dropHops(headers);
  for (const name of Object.keys(headers)) if (FORWARDED.test(name.replaceAll("_", "-"))) delete headers[name];
  headers["x-forwarded-for"] = client;
  headers["x-forwarded-host"] = headers.host ?? "";
  headers["x-forwarded-proto"] = isSecure ? "https" : "http";
}

/** In place. */
export function cleanResponse(headers: IncomingHttpHeaders): void {
  dropHops(headers);
  // Its body comes decoded, and how it goes on is between us and whoever asked.
  delete headers["transfer-encoding"];
  // A proxy in front must not take a service's words for the gate's.
  for (const name of Object.keys(headers)) if (name.startsWith("x-fleet-")) delete headers[name];
  // What a cache in front keeps would be given to those who may not pass, and outlive its service.
  const { "cache-control": policy } = headers;
  headers["cache-control"] = policy === undefined || policy === "" ? "private" : `${policy}, private`;
}

function dropHops(headers: IncomingHttpHeaders): void {
  const named = (headers.connection ?? "").split(",").map((name) => name.trim().toLowerCase());
  // How long its body is, a request says whatever it wants to be dropped.
  for (const name of [...HOP_BY_HOP, ...named]) if (!BODY.has(name)) delete headers[name];
}

const BODY: ReadonlySet<string> = new Set(["content-length", "transfer-encoding", "host"]);
