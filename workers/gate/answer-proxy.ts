/**
 * What a proxy in front is told that forwards by itself (Caddy's `forward_auth`): where a request goes on to, and where to look
 * next when nothing answered there. It shows a secret for it.
 */
import { timingSafeEqual } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import { noAnswer, say, toAnswer } from "./answers.ts";
import { clientOf, type Trust } from "./client-address.ts";
import { NO_SERVICE } from "./decide.ts";
import type { Enter } from "./enter.ts";
import { toMark } from "./first-visit.ts";
import { type Registry, type Route, upstreamOf } from "./registry.ts";
import type { Relocate } from "./relocate.ts";
import { isSafe, stripCredentials } from "./request.ts";
import { canWake } from "./waker.ts";

/** Shown by the proxy with each question; see GATE_PROXY_SECRET. */
export const PROXY_SECRET = "x-fleet-proxy-secret";
/** Where the proxy shall go on to, as ADDRESS:PORT; and where it could not, when it asks again. */
const UPSTREAM = "x-fleet-upstream";
/** Which service that is. */
const EPOCH = "x-fleet-epoch";
/** Asked again with: what it was that went wrong there, in Go's words. */
const ERROR = "x-fleet-error";
/** Comes along with it where the request is to go on without credentials of the gate; then what is left of these does, too. */
const MORE = "x-fleet-more";
const LEFT = {
  cookie: "x-fleet-cookie",
  authorization: "x-fleet-authorization",
  "x-api-key": "x-fleet-api-key",
} as const;
/** Likewise where the service's response is to clear what another left in the browser: the cookie to set. */
const MARK = "x-fleet-mark";
/** Where the proxy asks again; else its questions are about `/`. */
const UNREACHED = "/unreached";

export interface ProxyAnswers {
  /** Whether a request is a question of a proxy that knows the secret. */
  isQuestion(request: IncomingMessage): boolean;
  answer(request: IncomingMessage, response: ServerResponse): Promise<void>;
}

export interface ProxyAnswersOptions {
  enter: Enter;
  registry: Registry;
  relocate: Relocate;
  isTrusted: Trust;
  /** GATE_PROXY_SECRET. */
  secret: string | undefined;
}

export function createProxyAnswers(options: ProxyAnswersOptions): ProxyAnswers {
  const { enter, registry, relocate, isTrusted } = options;
  const secret = options.secret === undefined ? null : Buffer.from(options.secret);

  const decide = async (request: IncomingMessage, response: ServerResponse) => {
    const { "x-forwarded-method": method = "GET", "x-forwarded-uri": target = "/" } = request.headers;
    const upgrade = request.headers.upgrade !== undefined;
    const asked = { method: String(method), target: String(target), upgrade };
    const outcome = await enter(request, asked, clientOf(request, null, isTrusted));
    if (outcome.is !== "forward") return say(request, response, toAnswer(outcome));
    const { route } = outcome;
    const mark = toMark({ method: asked.method, headers: request.headers }, route);
    const isChanged = stripCredentials(request.headers);
    const headers: Record<string, string> = { [UPSTREAM]: upstreamOf(route), [EPOCH]: route.service.epoch };
    if (mark !== null) headers[MARK] = mark;
    if (mark !== null || isChanged) {
      headers[MORE] = "1";
      for (const [name, left] of Object.entries(LEFT)) headers[left] = String(request.headers[name] ?? "");
    }
    goOn(response, headers);
  };

  /** Of a request that may pass, as the gate has said just before; so it is told of the same service and of no other. */
  const lookAgain = async (request: IncomingMessage, response: ServerResponse) => {
    const { [UPSTREAM]: before, [EPOCH]: epoch, [ERROR]: error, "x-forwarded-method": method } = request.headers;
    const find = async () => {
      const found = await registry.find(parseHostHeader(request.headers.host) ?? "");
      return found?.service.epoch === epoch ? found : null;
    };
    const isThere = (route: Route) => route.address !== undefined && upstreamOf(route) === before;
    let route = await find();
    // What a service answers, be it rubbish, makes nobody ask PVE; only that it can't be connected does.
    const isUnreached = String(error).startsWith("dial ");
    if (route !== null && isThere(route) && isUnreached && (await relocate(route))) route = await find();
    if (route === null) return say(request, response, { status: 404, text: NO_SERVICE });
    if (route.address === undefined)
      return say(request, response, toAnswer({ is: canWake(route) ? "waking" : "asleep", route }));
    if (isThere(route)) return say(request, response, noAnswer(route));
    if (isSafe(String(method))) return goOn(response, { [UPSTREAM]: upstreamOf(route), [EPOCH]: route.service.epoch });
    // Of its body there may be nothing left.
    const text = "the sandbox has got another address; send it again";
    say(request, response, { status: 503, text, headers: { "retry-after": "1" } });
  };

  const goOn = (response: ServerResponse, headers: Record<string, string>) => {
    response.sendDate = false;
    // Said, since a proxy that does not read a body of unknown length gives the connection up.
    response.writeHead(200, { ...headers, "content-length": 0 }).end();
  };
  return {
    isQuestion({ headers }) {
      const shown = headers[PROXY_SECRET];
      if (secret === null || typeof shown !== "string") return false;
      const given = Buffer.from(shown);
      return given.length === secret.length && timingSafeEqual(given, secret);
    },
    answer: (request, response) =>
      // Its query is the visitor's.
      request.url?.split("?", 1)[0] === UNREACHED ? lookAgain(request, response) : decide(request, response),
  };
}
