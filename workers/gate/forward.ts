/** Takes requests that may pass to their services, where no proxy in front does: HTTP, and upgraded connections. */
import type { Agent, IncomingMessage, ServerResponse } from "node:http";
import { createProxyServer } from "httpxy";
import type { Logger } from "pino";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import { noAnswer, say } from "./answers.ts";
import { askUpgrade } from "./ask-upgrade.ts";
import { cleanRequest, cleanResponse, type Way } from "./clean-headers.ts";
import type { Exchanges } from "./exchanges.ts";
import { CLEARED, toMark } from "./first-visit.ts";
import { type Registry, type Route, upstreamOf } from "./registry.ts";
import type { Relocate } from "./relocate.ts";
import { isSafe } from "./request.ts";
import { isUnreachable, type Upstream } from "./upstream.ts";

export interface Forwarder extends Disposable {
  /** Its headers are the service's from here on. */
  forward(request: IncomingMessage, response: ServerResponse, to: Target): Promise<void>;
  /** Likewise, of a request for a WebSocket. */
  tunnel(request: IncomingMessage, response: ServerResponse, to: Target): Promise<void>;
}

export interface Target {
  route: Route;
  way: Way;
}

export interface ForwarderOptions {
  registry: Registry;
  relocate: Relocate;
  upstream: Upstream;
  open: Exchanges;
  log: Logger;
}

export function createForwarder({ registry, relocate, upstream, open, log }: ForwarderOptions): Forwarder {
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
    // A switch to nothing, which whoever asked would believe; what is below 100 is no status, and node throws where it is sent on.
    if (Number(answer.statusCode) < 200) answer.statusCode = 502;
    answer.statusMessage = ""; // node's own: it throws for what a service may write there
    cleanResponse(headers);
    headers.connection = response.shouldKeepAlive ? "keep-alive" : "close";
    const mark = marks.get(request);
    if (mark === undefined) return;
    headers["set-cookie"] = [...(headers["set-cookie"] ?? []), mark];
    headers["clear-site-data"] = CLEARED;
  });

  type Send = (request: IncomingMessage, response: ServerResponse, route: Route) => Promise<void>;
  /** Once more where the sandbox has another address by now: of the request and its body nothing has gone anywhere yet. */
  const reach = async (send: Send, request: IncomingMessage, response: ServerResponse, route: Route): Promise<void> => {
    try {
      await send(request, response, route);
    } catch (error) {
      const host = parseHostHeader(request.headers.host) ?? "";
      const now = isUnreachable(error) && (await relocate(route)) ? await registry.find(host) : null;
      if (now?.address === undefined || now.address === route.address) throw error;
      if (now.service.epoch !== route.service.epoch) throw error;
      await send(request, response, now);
    }
  };
  const reachOrSay: typeof reach = async (send, request, response, route) => {
    try {
      await reach(send, request, response, route);
    } catch (error) {
      log.debug({ err: error, sandbox: route.sandbox.id, service: route.service.name }, "a service did not answer");
      if (response.headersSent || request.socket.destroyed) response.destroy();
      else say(request, response, noAnswer(route));
    }
  };

  const sendOn: Send = async (request, response, route) => {
    using _ = open.add(route, request.socket, () => !response.headersSent);
    const send = (agent: Agent) => proxy.web(request, response, { target: `http://${upstreamOf(route)}`, agent });
    if (!isRepeatable(request)) return send(upstream.fresh);
    // A connection that is used again may have been closed by the service just then.
    await send(upstream.pooled(route)).catch((error: unknown) => {
      if (response.headersSent || request.socket.destroyed || isUnreachable(error)) throw error;
      return send(upstream.fresh);
    });
  };
  const upgradeTo: Send = async (request, response, route) => {
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
  return {
    async forward(request, response, { route, way }) {
      const mark = toMark(request, route);
      if (mark !== null) marks.set(request, mark);
      cleanRequest(request, way);
      if (request.headers.expect !== undefined) {
        delete request.headers.expect;
        response.writeContinue();
      }
      await reachOrSay(sendOn, request, response, route);
    },
    async tunnel(request, response, { route, way }) {
      cleanRequest(request, way);
      await reachOrSay(upgradeTo, request, response, route);
    },
    [Symbol.dispose]: () => proxy.close(() => {}),
  };
}

/** What may be sent twice, and whose body can't be lost on the way. */
const isRepeatable = ({ method = "", headers }: IncomingMessage): boolean =>
  isSafe(method) && headers["transfer-encoding"] === undefined && Number(headers["content-length"] ?? 0) === 0;
