/**
 * The gate: decides about each request to a public URL. It forwards those that may pass, or tells a proxy in front where to
 * (Caddy's `forward_auth`), which shows a secret for it.
 */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { connectRedis } from "../../shared/redis/connect.ts";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import type { WorkerContext } from "../context.ts";
import { startActivity } from "./activity.ts";
import { createProxyAnswers, PROXY_SECRET } from "./answer-proxy.ts";
import { say, toAnswer } from "./answers.ts";
import { createLastResponse } from "./ask-upgrade.ts";
import { clientOf, createTrust, isSecure } from "./client-address.ts";
import { createEnter, type Enter } from "./enter.ts";
import { startExchanges } from "./exchanges.ts";
import { createForwarder } from "./forward.ts";
import { createJudge } from "./judge.ts";
import { createLimiter } from "./limiter.ts";
import { startRegistry } from "./registry.ts";
import { createRelocate } from "./relocate.ts";
import { keepUnused } from "./unused-connections.ts";
import { createUpstream } from "./upstream.ts";
import { createWaker } from "./waker.ts";

export interface Gate extends AsyncDisposable {
  /** Where it listens, e.g. `http://127.0.0.1:3080`. */
  url: string;
}

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
  const proxy = createProxyAnswers({ enter, registry, relocate, isTrusted, secret: config.GATE_PROXY_SECRET });
  const forwarder = stack.use(createForwarder({ registry, relocate, upstream, open, log }));

  const answer = (request: IncomingMessage, response: ServerResponse) => {
    const answered = proxy.isQuestion(request) ? proxy.answer(request, response) : serve(request, response);
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
  const unused = keepUnused(server, isTrusted, IDLE_MS);

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
    await forwarder.forward(request, response, { route: outcome.route, way });
  };

  const upgrade = async (request: IncomingMessage, response: ServerResponse, head: Buffer) => {
    const { socket } = request;
    const way = wayOf(request);
    const outcome = await enter(request, askedOf(request), way.client);
    if (socket.destroyed) return;
    if (outcome.is !== "forward") return say(request, response, toAnswer(outcome));
    if (head.length > 0) socket.unshift(head);
    await forwarder.tunnel(request, response, { route: outcome.route, way });
  };

  const wayOf = (request: IncomingMessage) => {
    const peer = request.socket.remoteAddress ?? "";
    return { client: clientOf(request, peer, isTrusted), isSecure: isSecure(request, peer, isTrusted) };
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
    if (response === null) socket.destroy();
    else upgrade(request, response, head).catch((error: unknown) => unanswered(request, response, error));
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
      unused[Symbol.dispose]();
      open.destroyAll();
      await closed;
      await resources.disposeAsync();
    },
  };
}

/** Anything else that a client would switch to is ignored, as HTTP allows. */
const isWebSocket = ({ headers }: IncomingMessage): boolean => headers.upgrade?.toLowerCase() === "websocket";

const askedOf = (request: IncomingMessage) => ({
  method: request.method ?? "GET",
  target: request.url ?? "/",
  upgrade: request.headers.upgrade !== undefined,
});
