/**
 * The gate: decides about each request to a public URL. It forwards those that may pass, or tells a proxy in front where to
 * (Caddy's `forward_auth`), which shows a secret for it.
 */
import { timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse, STATUS_CODES } from "node:http";
import { type AddressInfo, BlockList, isIP, type Socket } from "node:net";
import { createProxyServer, proxyUpgrade } from "httpxy";
import { unreachable } from "../../shared/errors.ts";
import { toLinkKeys } from "../../shared/links.ts";
import { connectRedis } from "../../shared/redis/connect.ts";
import { type ApiKey, createApiKeyStore } from "../../shared/state/api-keys.ts";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import type { WorkerContext } from "../context.ts";
import { type Decision, decide, type Rules } from "./decide.ts";
import { createLimiter } from "./limiter.ts";
import { type Registry, type Route, startRegistry } from "./registry.ts";
import { readRequest, type Shown, stripCredentials } from "./request.ts";

export interface Gate extends AsyncDisposable {
  /** Where it listens, e.g. `http://127.0.0.1:3080`. */
  url: string;
}

/** Shown by the proxy with each question; see GATE_PROXY_SECRET. */
const PROXY_SECRET = "x-fleet-proxy-secret";
/** Where the proxy shall go on to, as ADDRESS:PORT. */
const UPSTREAM = "x-fleet-upstream";
/** A key that was revoked is forgotten by a message; should that be lost, after this long. */
const KEY_MS = 5_000;
const HEADERS_MS = 10_000;

/** Throws `not_configured` where there is no public domain. */
export async function startGate(context: WorkerContext): Promise<Gate> {
  const { config, redis, keys, store, log, wake } = context;
  const { PVE_PUBLIC_DOMAIN: domain, PVE_URL_PATTERN: pattern } = config;
  await using stack = new AsyncDisposableStack();
  const blocking = connectRedis(config.REDIS_URL);
  blocking.on("error", (error) => log.debug({ err: error }, "redis connection"));
  const registry = stack.use(
    startRegistry({ redis, blocking, keys, store, pattern, domain: domain ?? "localhost", log }),
  );
  const judge = createJudge(context, registry);
  stack.defer(wake.on((kind, subject) => void (kind === "key" && judge.forgetKey(subject))));
  const open = createOpenExchanges(registry);
  const proxy = createProxyServer({ xfwd: false });
  const secret = config.GATE_PROXY_SECRET === undefined ? null : Buffer.from(config.GATE_PROXY_SECRET);

  const server = createServer({ maxHeaderSize: 32_768, shouldUpgradeCallback: isWebSocket }, (request, response) => {
    const answer = isFromProxy(request, secret) ? answerProxy(request, response) : serve(request, response);
    answer.catch((error: unknown) => {
      log.warn({ err: error }, "the gate could not answer a request");
      if (response.headersSent) response.destroy();
      else say(response, 503, "the registry of services can't be read just now; try again", { "retry-after": "1" });
    });
  });
  server.headersTimeout = HEADERS_MS;
  server.requestTimeout = 0; // uploads take their time

  const answerProxy = async (request: IncomingMessage, response: ServerResponse) => {
    const { "x-forwarded-method": method = "GET", "x-forwarded-uri": target = "/" } = request.headers;
    const asked = { method: String(method), target: String(target), upgrade: isUpgrade(request) };
    const decision = await judge.ask(request, asked, String(request.headers["x-forwarded-for"] ?? ""));
    if (decision.is !== "forward") {
      refuse(response, decision);
      return;
    }
    const { route } = decision;
    stripCredentials(request.headers);
    const { cookie = "", authorization = "", "x-api-key": key = "" } = request.headers;
    response.writeHead(200, { [UPSTREAM]: upstreamOf(route), cookie, authorization, "x-api-key": String(key) }).end();
  };

  const serve = async (request: IncomingMessage, response: ServerResponse) => {
    const isOwn = parseHostHeader(request.headers.host) === null && (await ownPage(request, response));
    if (isOwn) return;
    const decision = await judge.ask(request, askedOf(request), request.socket.remoteAddress ?? "");
    if (decision.is !== "forward") {
      refuse(response, decision);
      return;
    }
    const { route } = decision;
    forwardHeaders(request);
    using _ = open.add(route, request.socket);
    await proxy.web(request, response, { target: `http://${upstreamOf(route)}` }).catch((error: unknown) => {
      log.debug({ err: error, sandbox: route.sandbox.id, service: route.service.name }, "a service did not answer");
      if (response.headersSent) response.destroy();
      else say(response, 502, `nothing answers on port ${route.service.port} of this sandbox`);
    });
  };

  const upgrade = async (request: IncomingMessage, socket: Socket, head: Buffer) => {
    const decision = await judge.ask(request, askedOf(request), socket.remoteAddress ?? "");
    if (decision.is !== "forward") {
      const { status, text } = toAnswer(decision);
      leave(socket, status, text);
      return;
    }
    const { route } = decision;
    forwardHeaders(request);
    const held = open.add(route, socket);
    socket.once("close", () => held[Symbol.dispose]());
    const upstream = await proxyUpgrade(`http://${upstreamOf(route)}`, request, socket, head, { xfwd: false });
    // Piped streams end one another, but one that is destroyed leaves the other open.
    socket.once("close", () => upstream.destroy());
    upstream.once("close", () => socket.destroy());
    if (socket.destroyed) upstream.destroy();
  };

  /** Pages of the gate itself, at its own address: for the load balancer, and for Caddy's `ask`. */
  const ownPage = async (request: IncomingMessage, response: ServerResponse): Promise<boolean> => {
    const url = new URL(request.url ?? "/", "http://gate");
    if (url.pathname === "/healthz") say(response, 200, "ok");
    else if (url.pathname === "/ask") {
      if (!isTrusted(request.socket.remoteAddress)) say(response, 403, "only the proxy may ask");
      else {
        const host = parseHostHeader(url.searchParams.get("domain") ?? undefined);
        const known = host !== null && (await registry.find(host)) !== null;
        say(response, known ? 200 : 404, known ? "ok" : "no such service");
      }
    } else return false;
    return true;
  };
  const trusted = toBlockList(config.GATE_TRUSTED_PROXIES);
  const isTrusted = (address = "") => {
    const plain = address.replace(/^::ffff:/, "");
    const family = isIP(plain);
    return family !== 0 && trusted.check(plain, family === 6 ? "ipv6" : "ipv4");
  };

  server.on("upgrade", (request: IncomingMessage, socket: Socket, head: Buffer) => {
    socket.on("error", () => socket.destroy());
    upgrade(request, socket, head).catch((error: unknown) => {
      log.debug({ err: error }, "the gate could not upgrade a connection");
      leave(socket, 502, "nothing answers there");
    });
  });

  server.listen(config.GATE_PORT, config.GATE_HOST);
  await once(server, "listening");
  const resources = stack.move();
  const { port } = server.address() as AddressInfo; // a TCP server's
  const host = config.GATE_HOST.includes(":") ? `[${config.GATE_HOST}]` : config.GATE_HOST;
  const url = `http://${host}:${port}`;
  log.info({ url, domain }, "gate is up");
  return {
    url,
    async [Symbol.asyncDispose]() {
      const closed = once(server, "close");
      server.close();
      server.closeAllConnections();
      open.destroyAll();
      await closed;
      proxy.close(() => {});
      await resources.disposeAsync();
    },
  };
}

const isUpgrade = ({ headers }: IncomingMessage): boolean => headers.upgrade !== undefined;

/** Anything else that a client would switch to is ignored, as HTTP allows. */
const isWebSocket = ({ headers }: IncomingMessage): boolean => headers.upgrade?.toLowerCase() === "websocket";

const askedOf = (request: IncomingMessage) => ({
  method: request.method ?? "GET",
  target: request.url ?? "/",
  upgrade: isUpgrade(request),
});

const upstreamOf = ({ address = "", service }: Route): string =>
  `${address.includes(":") ? `[${address}]` : address}:${service.port}`;

function isFromProxy({ headers }: IncomingMessage, secret: Buffer | null): boolean {
  const shown = headers[PROXY_SECRET];
  if (secret === null || typeof shown !== "string") return false;
  const given = Buffer.from(shown);
  return given.length === secret.length && timingSafeEqual(given, secret);
}

/** What the service learns of the request's way; what clients say of it themselves does not count. */
function forwardHeaders(request: IncomingMessage): void {
  const { headers, socket } = request;
  stripCredentials(headers);
  for (const name of Object.keys(headers))
    if (name === "forwarded" || name.startsWith("x-forwarded-")) delete headers[name];
  headers["x-forwarded-for"] = socket.remoteAddress ?? "";
  headers["x-forwarded-host"] = headers.host ?? "";
}

function toBlockList(cidrs: readonly string[]): BlockList {
  const list = new BlockList();
  for (const cidr of cidrs) {
    const [address = "", bits = ""] = cidr.split("/");
    list.addSubnet(address, Number(bits), isIP(address) === 6 ? "ipv6" : "ipv4");
  }
  return list;
}

interface Judge {
  ask(
    request: IncomingMessage,
    asked: { method: string; target: string; upgrade: boolean },
    client: string,
  ): Promise<Decision | { is: "limited" }>;
  forgetKey(id: string): void;
}

function createJudge({ config, redis, keys }: WorkerContext, registry: Registry): Judge {
  const apiKeys = createApiKeyStore(redis, keys);
  const remembered = new Map<string, { key: Promise<ApiKey | null>; until: number }>();
  const failures = createLimiter({ most: 60, perMs: 60_000 });
  const linkKeys = toLinkKeys(config.FLEET_SECRET_KEY);
  const appOrigins = new Set(config.GATE_APP_ORIGINS);
  const loadKey = ({ id }: NonNullable<Shown["key"]>) => {
    const known = remembered.get(id);
    if (known && known.until > performance.now()) return known.key;
    if (remembered.size > 10_000) remembered.clear();
    const key = apiKeys.load(id);
    remembered.set(id, { key, until: performance.now() + KEY_MS });
    key.catch(() => remembered.delete(id));
    return key;
  };
  return {
    async ask(request, { method, target, upgrade }, client) {
      if (failures.isOver(client)) return { is: "limited" };
      const { host, cookies, key } = readRequest(request);
      if (host === null) return { is: "refused", status: 400, reason: "the Host header is not a host name" };
      const route = await registry.find(host);
      const apiKey = key && { secret: key.secret, known: await loadKey(key) };
      const rules: Rules = { linkKeys, appOrigins, nowSec: Math.floor(Date.now() / 1_000) };
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

/** Open exchanges end with their route: a sandbox that is gone must not be talked to over a connection from before. */
function createOpenExchanges(registry: Registry) {
  const sockets = new Map<string, Map<Socket, Route>>();
  registry.onChange((sandbox) => {
    for (const [socket, route] of sockets.get(sandbox) ?? []) {
      const host = parseHostHeader(new URL(route.service.url).host) ?? "";
      registry.find(host).then(
        (now) => {
          const same =
            now?.service.epoch === route.service.epoch &&
            now.address === route.address &&
            now.service.port === route.service.port;
          if (!same) socket.destroy();
        },
        () => socket.destroy(),
      );
    }
  });
  return {
    destroyAll() {
      for (const own of sockets.values()) for (const socket of own.keys()) socket.destroy();
    },
    add(route: Route, socket: Socket): Disposable {
      const { id } = route.sandbox;
      const own = sockets.get(id) ?? new Map<Socket, Route>();
      sockets.set(id, own.set(socket, route));
      return {
        [Symbol.dispose]() {
          own.delete(socket);
          if (own.size === 0) sockets.delete(id);
        },
      };
    },
  };
}

/** Headers of the gate's own answers. */
const OWN_PAGE = {
  "content-type": "text/plain; charset=utf-8",
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; frame-ancestors *",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

/** The end of a connection that is not upgraded. */
function leave(socket: Socket, status: number, text: string): void {
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ""}\r\nConnection: close\r\nContent-Length: ${text.length}\r\n\r\n${text}`,
  );
}

function say(response: ServerResponse, status: number, text: string, headers: Record<string, string> = {}): void {
  response.writeHead(status, { ...OWN_PAGE, ...headers }).end(`${text}\n`);
}

type Refusal = Exclude<Decision | { is: "limited" }, { is: "forward" }>;

function refuse(response: ServerResponse, decision: Refusal): void {
  const { status, text, headers = {} } = toAnswer(decision);
  say(response, status, text, headers);
}

function toAnswer(decision: Refusal): { status: number; text: string; headers?: Record<string, string> } {
  switch (decision.is) {
    case "limited": {
      const text = "too many wrong keys and links from your address; wait a minute";
      return { status: 429, text, headers: { "retry-after": "60" } };
    }
    case "redirect":
      return { status: 302, text: "", headers: { location: decision.location, "set-cookie": decision.cookie } };
    case "asleep": {
      const text = `the sandbox is ${decision.route.sandbox.state}`;
      return { status: 503, text, headers: { "retry-after": "5" } };
    }
    case "refused": {
      const { status, reason: text } = decision;
      return status === 401 ? { status, text, headers: { "www-authenticate": "Bearer" } } : { status, text };
    }
    default:
      throw unreachable(decision);
  }
}
