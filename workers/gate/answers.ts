/** The gate's own answers: for browsers as small pages, for API clients as JSON, else as text. */
import { createHash } from "node:crypto";
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from "node:http";
import { unreachable } from "../../shared/errors.ts";
import type { Outcome } from "./enter.ts";
import type { Route } from "./registry.ts";

const STYLE =
  "body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fafafa;display:grid;place-items:center;min-height:90vh;margin:0}main{max-width:32rem;padding:1rem}h1{font-size:1.25rem}@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}}";
const STYLE_HASH = createHash("sha256").update(STYLE).digest("base64");

/** Nothing of these pages is kept, loads anything, or tells where the visitor came from. */
const OWN_PAGE = {
  /** Tells them from what services answer; see `fleet proxy --check`. */
  "x-fleet-gate": "1",
  "cache-control": "no-store",
  "content-security-policy": `default-src 'none'; style-src 'sha256-${STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors *`,
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

export interface Answer {
  status: number;
  text: string;
  headers?: Record<string, string>;
  /** Seconds after which a browser asks again by itself. */
  reloadSec?: number;
}

/** Whether a person waits for a page: what a script or an image asks for has another destination. */
export function isNavigation(method: string, { accept = "", ...headers }: IncomingMessage["headers"]): boolean {
  const destination = headers["sec-fetch-dest"];
  const mayShow = typeof destination !== "string" || ["document", "iframe", "frame"].includes(destination);
  return (method === "GET" || method === "HEAD") && mayShow && /(^|[ ,])text\/html($|[ ,;])/i.test(accept);
}

export function say(request: IncomingMessage, response: ServerResponse, answer: Answer): void {
  const { status, headers = {} } = answer;
  const [type, body] = render(request, answer);
  // Who was never told to send its body may send it or not: what comes next on this connection is not certain to be a request.
  if (request.headers.expect !== undefined) response.setHeader("connection", "close");
  response.writeHead(status, { ...OWN_PAGE, "content-type": `${type}; charset=utf-8`, ...headers }).end(`${body}\n`);
}

function render({ headers }: IncomingMessage, { status, text, reloadSec }: Answer): [string, string] {
  if (isNavigation("GET", headers)) return ["text/html", toPage(status, text, reloadSec)];
  if (/(^|[ ,])application\/json($|[ ,;])/i.test(headers.accept ?? ""))
    return ["application/json", JSON.stringify({ status, message: text })];
  return ["text/plain", text];
}

function toPage(status: number, text: string, reloadSec: number | undefined): string {
  const title = reloadSec === undefined ? `${status} ${STATUS_CODES[status] ?? ""}` : "Waking up";
  const reload = reloadSec === undefined ? "" : `<meta http-equiv="refresh" content="${reloadSec}">`;
  const said = text.replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">${reload}<title>${title}</title><style>${STYLE}</style><main><h1>${title}</h1><p>${said}</p></main></html>`;
}

function toState({ sandbox: { state }, leaving }: Route): string {
  if (leaving) return "the sandbox is being put to sleep";
  if (state === "running") return "the sandbox has no address of its own yet";
  return state === "paused" || state === "stopped"
    ? `the sandbox is ${state}, and requests do not wake it; whoever runs it can resume it`
    : `the sandbox is ${state}`;
}

export const noAnswer = ({ service: { port } }: Route): Answer => ({
  status: 502,
  text: `nothing answers on port ${port} of this sandbox`,
  headers: { "retry-after": "5" },
});

export function toAnswer(outcome: Exclude<Outcome, { is: "forward" }>): Answer {
  switch (outcome.is) {
    case "limited":
      return { status: 429, text: outcome.reason, headers: { "retry-after": "60" } };
    case "redirect":
      return { status: 302, text: "", headers: { location: outcome.location, "set-cookie": outcome.cookie } };
    case "asleep":
      return { status: 503, text: toState(outcome.route), headers: { "retry-after": "5" } };
    case "waking": {
      const text = "The sandbox wakes up; its service will answer in a moment.";
      return { status: 503, text, headers: { "retry-after": "1" }, reloadSec: 1 };
    }
    case "unwakeable": {
      const text = `the sandbox is asleep and could not be woken (${outcome.code}); try again`;
      return { status: 503, text, headers: { "retry-after": "5" } };
    }
    case "refused": {
      const { status, reason: text } = outcome;
      return status === 401 ? { status, text, headers: { "www-authenticate": "Bearer" } } : { status, text };
    }
    default:
      throw unreachable(outcome);
  }
}
