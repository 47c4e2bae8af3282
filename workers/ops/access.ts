/** Who gets to the ops pages, and what they may do there. Decided before any route runs. */
import { createHmac, randomBytes } from "node:crypto";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Logger } from "pino";
import { isLoopback } from "../../shared/config-ops.ts";
import { findLogin, type Login, type OpsRole } from "../../shared/logins.ts";
import { createLimiter } from "../gate/limiter.ts";

export interface Visitor {
  /** Absent where no logins are configured. */
  name: string | undefined;
  role: OpsRole;
}

const visitors = new WeakMap<FastifyRequest, Visitor>();
/** Of a request that was let in. */
export const visitorOf = (request: FastifyRequest): Visitor =>
  visitors.get(request) ?? { name: undefined, role: "viewer" };

/** Probes have no login; what they are told is no secret. */
const OPEN_PATHS = new Set(["/healthz", "/readyz"]);

/** Wrong passwords of one address within a minute. */
const TRIES = { most: 10, perMs: 60_000 };
/** Each takes 32 MiB and a thread. */
const CHECKS_AT_ONCE = 4;
/** A browser sends its password with every request; checking it each time would take a core. */
const REMEMBER_MS = 300_000;
const REMEMBERED = 1_000;

const HEADERS = {
  "content-security-policy":
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; " +
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "same-origin",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
};

/** Without logins everybody on this machine is a viewer. */
export function guardOps(app: FastifyInstance, { logins, log }: { logins: readonly Login[]; log: Logger }): void {
  const authenticate = createAuthenticator(logins, log);
  app.addHook("onRequest", async (request, reply) => {
    reply.headers(HEADERS);
    const path = request.url.split("?", 1)[0] ?? "";
    if (OPEN_PATHS.has(path)) return;
    const visitor = logins.length > 0 ? await authenticate(request, reply) : asNeighbour(request, reply);
    if (visitor === null) return reply;
    visitors.set(request, visitor);
    if (request.method === "GET" || request.method === "HEAD") return;
    if (!isSameOrigin(request)) return refuse(reply, 403, "this may only be asked for from the ops pages themselves");
    if (visitor.role !== "operator") return refuse(reply, 403, actionsNeed(visitor));
  });
}

const actionsNeed = ({ name }: Visitor) =>
  name === undefined
    ? "actions need an operator's login; make one with: fleet login operator NAME, and set OPS_LOGINS"
    : `${name} is a viewer; actions need an operator's login`;

const refuse = (reply: FastifyReply, status: number, text: string) =>
  reply.code(status).type("text/plain; charset=utf-8").send(`${text}\n`);

/** A page of somebody else's that resolves its own name to this machine must not read along. */
function asNeighbour(request: FastifyRequest, reply: FastifyReply): Visitor | null {
  const url = URL.parse(`http://${request.headers.host ?? ""}`);
  const host = url?.hostname.replace(/^\[|\]$/g, "") ?? "";
  if (isLoopback(host)) return { name: undefined, role: "viewer" };
  refuse(reply, 421, "without a login these pages are reached as localhost or 127.0.0.1 only; see OPS_LOGINS");
  return null;
}

function createAuthenticator(logins: readonly Login[], log: Logger) {
  const limiter = createLimiter(TRIES);
  const known = new Map<string, { login: Login; until: number }>();
  const key = randomBytes(32);
  let checking = 0;
  const challenge = (reply: FastifyReply, status: number, text: string) => {
    reply.header("www-authenticate", 'Basic realm="sandbox-fleet", charset="UTF-8"');
    refuse(reply, status, text);
    return null;
  };
  return async (request: FastifyRequest, reply: FastifyReply): Promise<Visitor | null> => {
    const given = parseBasic(request.headers.authorization);
    if (given === null) return challenge(reply, 401, "these pages need a login");
    const digest = createHmac("sha256", key).update(`${given.name}\0${given.password}`).digest("base64");
    const remembered = known.get(digest);
    if (remembered && remembered.until > performance.now()) return toVisitor(remembered.login);
    known.delete(digest);
    const address = request.socket.remoteAddress ?? "";
    if (limiter.isOver(address)) {
      reply.header("retry-after", Math.ceil(TRIES.perMs / 1_000));
      refuse(reply, 429, "too many wrong passwords; try again in a minute");
      return null;
    }
    if (checking >= CHECKS_AT_ONCE) {
      reply.header("retry-after", 1);
      refuse(reply, 503, "too many logins at once; try again");
      return null;
    }
    checking++;
    limiter.count(address); // taken back by a right one, so that many at once are no way around
    const login = await findLogin(logins, given.name, given.password).finally(() => checking--);
    if (login === null) {
      log.warn({ address }, "wrong login to the ops pages");
      return challenge(reply, 401, "wrong name or password");
    }
    limiter.takeBack(address);
    if (known.size >= REMEMBERED) known.clear();
    known.set(digest, { login, until: performance.now() + REMEMBER_MS });
    return toVisitor(login);
  };
}

const toVisitor = ({ name, role }: Login): Visitor => ({ name, role });

function parseBasic(header: string | undefined): { name: string; password: string } | null {
  const [, encoded] = /^basic ([A-Za-z0-9+/]{1,1000}={0,2})$/i.exec(header ?? "") ?? [];
  if (encoded === undefined) return null;
  const text = Buffer.from(encoded, "base64").toString("utf8");
  const colon = text.indexOf(":");
  return colon < 0 ? null : { name: text.slice(0, colon), password: text.slice(colon + 1) };
}

/** Browsers tell where a request that changes something comes from; what does not tell is let go nowhere. */
function isSameOrigin({ headers }: FastifyRequest): boolean {
  const site = headers["sec-fetch-site"];
  if (site !== undefined && site !== "same-origin") return false;
  const origin = headers.origin === undefined ? null : URL.parse(headers.origin);
  return origin !== null && headers.host !== undefined && origin.host === headers.host.toLowerCase();
}
