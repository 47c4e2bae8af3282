/**
 * The gate: decides about each request to a public URL. It forwards those that may pass, or tells a proxy in front where to
 * (Caddy's `forward_auth`), which shows a secret for it.
 */
import { timingSafeEqual } from "node:crypto";
import { once } from "node:events";
import { type Agent, createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { createProxyServer } from "httpxy";
import { connectRedis } from "../../shared/redis/connect.ts";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import type { WorkerContext } from "../context.ts";
import { startActivity } from "./activity.ts";
import { say, toAnswer } from "./answers.ts";
import { askUpgrade, createLastResponse } from "./ask-upgrade.ts";
import { cleanRequest, cleanResponse } from "./clean-headers.ts";
import { clientOf, createTrust, isSecure } from "./client-address.ts";
import { createEnter, type Enter } from "./enter.ts";
import { startExchanges } from "./exchanges.ts";
import { CLEARED, toMark } from "./first-visit.ts";
import { createJudge } from "./judge.ts";
import { createLimiter } from "./limiter.ts";
import { type Route, startRegistry } from "./registry.ts";
import { createRelocate } from "./relocate.ts";
import { stripCredentials } from "./request.ts";
import { createUpstream, isUnreachable } from "./upstream.ts";
import { createWaker } from "./waker.ts";

export interface Gate extends AsyncDisposable {
  /** Where it listens, e.g. `http://127.0.0.1:3080`. */
  url: string;
}

/** Shown by the proxy with each question; see GATE_PROXY_SECRET. */
const PROXY_SECRET = "x-fleet-proxy-secret";
/** Where the proxy shall go on to, as ADDRESS:PORT. */
const UPSTREAM = "x-fleet-upstream";
/** Comes along with it where the request is to go on without credentials of the gate; then what is left of these does, too. */
const MORE = "x-fleet-more";
const LEFT = {
  cookie: "x-fleet-cookie",
  authorization: "x-fleet-authorization",
  "x-api-key": "x-fleet-api-key",
} as const;
/** Likewise where the service's response is to clear what another left in the browser: the cookie to set. */
const MARK = "x-fleet-mark";
const HEADERS_MS = 10_000;
/** Longer than proxies keep idle connections (Caddy 2 min, cloudflared and Traefik 90 s), so that none sends into a closing one. */
const IDLE_MS = 150_000;
/** Unknown hosts that a proxy may ask about; known ones are not limited. */
const UNKNOWN_ASKS = { most: 600, perMs: 60_000 };

/** Throws `not_configured` where there is no public domain. */
export async function startGate(context: WorkerContext): Promise<Gate> {
  const { config, redis, keys, store, machines, log, wake } = context;
  const { PVE_PUBLIC_DOMAIN: domain, PVE_URL_PATTERN: pattern } = config;
  await using stack = new AsyncDisposableStack();
  const blocking = connectRedis(config.REDIS_URL);
  blocking.on("error", (error) => log.debug({ err: error }, "redis connection"));
  const registry = stack.use(
    startRegistry({ redis, blocking, keys, store, machines, pattern, domain: domain ?? "localhost", log }),
  );
  const judge = createJudge(context, registry);
  stack.defer(wake.on((kind, subject) => void (kind === "key" && judge.forgetKey(subject))));
  const upstream = stack.use(createUpstream(registry));
  const closing = new AbortController();
  const waker = createWaker(context, registry, closing.signal);
  const activity = stack.use(startActivity(context));
  const open = stack.use(startExchanges({ registry, activity, waker, log }));
  const decided = createEnter({
    judge,
    upstream,
    activity,
    waker,
    wakeMs: config.GATE_WAKE_SECONDS * 1_000,
    signal: closing.signal,
  });
  const enter: Enter = async (...asked) => {
    const outcome = await decided(...asked);
    context.metrics.gateDecided(outcome.is);
    return outcome;
  };
  const relocate = createRelocate(context, registry, closing.signal);
  const isTrusted = createTrust(config.GATE_TRUSTED_PROXIES);
  const marks = new WeakMap<IncomingMessage, string>();
  const proxy = createProxyServer({ xfwd: false });
  proxy.on("proxyReq", (sent) => {
    // Without a listener nothing would ever be heard of it.
    sent.once("upgrade", (_, socket) => {
      socket.destroy();
      sent.emit("error", new Error("the service switched to a protocol that nobody asked for"));
    });
  });
  proxy.on("proxyRes", (answer, request, response) => {
    const { headers } = answer;
    if (answer.statusCode === 101) answer.statusCode = 502; // to nothing, and whoever asked would believe it
    cleanResponse(headers);
    headers.connection = response.shouldKeepAlive ? "keep-alive" : "close";
    const mark = marks.get(request);
    if (mark === undefined) return;
    headers["set-cookie"] = [...(headers["set-cookie"] ?? []), mark];
    headers["clear-site-data"] = CLEARED;
  });
  const secret = config.GATE_PROXY_SECRET === undefined ? null : Buffer.from(config.GATE_PROXY_SECRET);

  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const answered = isFromProxy(request, secret) ? answerProxy(request, response) : serve(request, response);
    answered.catch((error: unknown) => unanswered(request, response, error));
  };
  const unanswered = (request: IncomingMessage, response: ServerResponse, error: unknown) => {
    if (!closing.signal.aborted) log.warn({ err: error }, "the gate could not answer a request");
    const text = "the registry of services can't be read just now; try again";
    if (response.headersSent || request.socket.destroyed) response.destroy();
    else say(request, response, { status: 503, text, headers: { "retry-after": "1" } });
  };
  const limits = { maxHeaderSize: 32_768, headersTimeout: HEADERS_MS, connectionsCheckingInterval: HEADERS_MS / 10 };
  const server = createServer({ ...limits, shouldUpgradeCallback: isWebSocket }, answer);
  // By their size alone: of many small ones Node would leave out the last, such as those that the proxy adds.
  server.maxHeadersCount = 0;
  // Who asks before sending its body is told to go on once there is somebody to take it.
  server.on("checkContinue", answer);
  server.keepAliveTimeout = IDLE_MS;
  server.requestTimeout = 0; // uploads take their time

  const answerProxy = async (request: IncomingMessage, response: ServerResponse) => {
    const { "x-forwarded-method": method = "GET", "x-forwarded-uri": target = "/" } = request.headers;
    const asked = { method: String(method), target: String(target), upgrade: isUpgrade(request) };
    const outcome = await enter(request, asked, clientOf(request, null, isTrusted));
    if (outcome.is !== "forward") return say(request, response, toAnswer(outcome));
    const { route } = outcome;
    const mark = toMark({ method: asked.method, headers: request.headers }, route);
    const isChanged = stripCredentials(request.headers);
    const headers: Record<string, string | number> = { [UPSTREAM]: upstreamOf(route) };
    if (mark !== null) headers[MARK] = mark;
    if (mark !== null || isChanged) {
      headers[MORE] = "1";
      for (const [name, left] of Object.entries(LEFT)) headers[left] = String(request.headers[name] ?? "");
    }
    response.sendDate = false;
    // Said, since a proxy that does not read a body of unknown length gives the connection up.
    response.writeHead(200, { ...headers, "content-length": 0 }).end();
  };

  const serve = async (request: IncomingMessage, response: ServerResponse) => {
    if (request.headers[PROXY_SECRET] !== undefined) {
      // Not served: a proxy that counts on a decision would take the service's answer for one.
      const text = "the proxy's secret is not this gate's GATE_PROXY_SECRET";
      return say(request, response, { status: 403, text });
    }
    const host = parseHostHeader(request.headers.host);
    if ((host === null || !registry.isOurs(host)) && (await ownPage(request, response))) return;
    const way = wayOf(request);
    const outcome = await enter(request, askedOf(request), way.client);
    if (request.socket.destroyed) return; // while it waited for the sandbox
    if (outcome.is !== "forward") return say(request, response, toAnswer(outcome));
    const mark = toMark(request, outcome.route);
    if (mark !== null) marks.set(request, mark);
    cleanRequest(request, way);
    if (request.headers.expect !== undefined) {
      delete request.headers.expect;
      response.writeContinue();
    }
    try {
      await reach(outcome.route, host, (route) => forward(request, response, route));
    } catch (error) {
      failed(request, response, outcome.route, error);
    }
  };

  const wayOf = (request: IncomingMessage) => {
    const peer = request.socket.remoteAddress ?? "";
    return { client: clientOf(request, peer, isTrusted), isSecure: isSecure(request, peer, isTrusted) };
  };

  /** Once more where the sandbox has another address by now: of the request and its body nothing has gone anywhere yet. */
  const reach = async (route: Route, host: string | null, send: (route: Route) => Promise<void>): Promise<void> => {
    try {
      await send(route);
    } catch (error) {
      const now = isUnreachable(error) && host !== null && (await relocate(route)) ? await registry.find(host) : null;
      if (now?.address === undefined || now.service.epoch !== route.service.epoch) throw error;
      await send(now);
    }
  };

  const failed = (request: IncomingMessage, response: ServerResponse, { sandbox, service }: Route, error: unknown) => {
    log.debug({ err: error, sandbox: sandbox.id, service: service.name }, "a service did not answer");
    if (response.headersSent || request.socket.destroyed) response.destroy();
    else say(request, response, { status: 502, text: `nothing answers on port ${service.port} of this sandbox` });
  };

  const forward = async (request: IncomingMessage, response: ServerResponse, route: Route) => {
    using _ = open.add(route, request.socket, () => !response.headersSent);
    const send = (agent: Agent) => proxy.web(request, response, { target: `http://${upstreamOf(route)}`, agent });
    if (!isRepeatable(request)) return send(upstream.fresh);
    // A connection that is used again may have been closed by the service just then.
    await send(upstream.pooled(route)).catch((error: unknown) => {
      if (response.headersSent || request.socket.destroyed || isUnreachable(error)) throw error;
      return send(upstream.fresh);
    });
  };

  const upgrade = async (request: IncomingMessage, response: ServerResponse, head: Buffer) => {
    const { socket } = request;
    const way = wayOf(request);
    const outcome = await enter(request, askedOf(request), way.client);
    if (socket.destroyed) return;
    if (outcome.is !== "forward") return say(request, response, toAnswer(outcome));
    cleanRequest(request, way);
    if (head.length > 0) socket.unshift(head);
    try {
      await reach(outcome.route, parseHostHeader(request.headers.host), (route) => tunnel(request, response, route));
    } catch (error) {
      failed(request, response, outcome.route, error);
    }
  };

  const tunnel = async (request: IncomingMessage, response: ServerResponse, route: Route) => {
    const { socket } = request;
    const held = open.add(route, socket);
    try {
      const service = await askUpgrade(request, response, route, upstream.fresh);
      socket.once("close", () => held[Symbol.dispose]());
      if (service === null) return;
      service.on("error", () => socket.destroy());
      service.pipe(socket).pipe(service);
      // Piped streams end one another, but one that is destroyed leaves the other open.
      socket.once("close", () => service.destroy());
      service.once("close", () => socket.destroySoon());
      if (socket.destroyed) service.destroy();
    } catch (error) {
      held[Symbol.dispose]();
      throw error;
    }
  };

  /** Pages of the gate itself, at its own address: for the load balancer, and for Caddy's `ask`. */
  const ownPage = async (request: IncomingMessage, response: ServerResponse): Promise<boolean> => {
    const [path, query = ""] = (request.url ?? "").split("?", 2);
    if (path === "/healthz") say(request, response, { status: 200, text: "ok" });
    else if (path === "/ask") {
      if (!isTrusted(request.socket.remoteAddress))
        say(request, response, { status: 403, text: "only the proxy may ask" });
      else {
        const host = parseHostHeader(new URLSearchParams(query).get("domain") ?? undefined);
        const known = host !== null && (await registry.find(host)) !== null;
        const asker = request.socket.remoteAddress ?? "";
        if (!known) unknownAsks.count(asker);
        if (known) say(request, response, { status: 200, text: "ok" });
        else if (unknownAsks.isOver(asker)) say(request, response, { status: 429, text: "too many unknown hosts" });
        else say(request, response, { status: 404, text: "no such service" });
      }
    } else return false;
    return true;
  };
  const unknownAsks = createLimiter(UNKNOWN_ASKS);
  server.on("upgrade", (request: IncomingMessage, socket: Socket, head: Buffer) => {
    socket.on("error", () => socket.destroy());
    const response = createLastResponse(request, socket);
    upgrade(request, response, head).catch((error: unknown) => unanswered(request, response, error));
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
      closing.abort();
      server.close();
      server.closeAllConnections();
      open.destroyAll();
      await closed;
      proxy.close(() => {});
      await resources.disposeAsync();
    },
  };
}

/** What may be sent twice, as RFC 9110 has it (9.2.1), and whose body can't be lost on the way. */
const isRepeatable = ({ method = "", headers }: IncomingMessage): boolean =>
  ["GET", "HEAD", "OPTIONS"].includes(method) &&
  headers["transfer-encoding"] === undefined &&
  Number(headers["content-length"] ?? 0) === 0;

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
