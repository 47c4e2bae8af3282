/**
 * Open exchanges: they are uses of their sandbox while bytes flow or an answer is waited for, and end with their route. A
 * sandbox that is gone must not be talked to over a connection from before; one that is frozen keeps its connections, and
 * bytes that come over one wake it.
 */
import type { Socket } from "node:net";
import type { Logger } from "pino";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import type { Activity } from "./activity.ts";
import type { Registry, Route } from "./registry.ts";
import { canWake, type Waker } from "./waker.ts";

const LOOK_MS = 1_000;

export interface Exchanges extends Disposable {
  /** Until it is disposed of. `awaits`: whether an answer is still waited for; upgraded connections await none. */
  add(route: Route, socket: Socket, awaits?: () => boolean): Disposable;
  destroyAll(): void;
}

interface Exchange {
  route: Route;
  read: number;
  written: number;
  /** ms since the epoch when it was last found that its client had sent something. */
  sentAt: number;
  awaits: () => boolean;
}

export interface ExchangesOptions {
  registry: Registry;
  activity: Activity;
  waker: Waker;
  log: Logger;
}

export function startExchanges({ registry, activity, waker, log }: ExchangesOptions): Exchanges {
  const exchanges = new Map<string, Map<Socket, Exchange>>();
  const wake = (route: Route, socket: Socket) => {
    const woken = waker.wake(hostOf(route), route, socket.remoteAddress ?? "");
    woken.catch((error: unknown) => log.debug({ err: error }, "an open connection could not wake its sandbox"));
  };
  const off = registry.onChange((sandbox) => {
    for (const [socket, exchange] of exchanges.get(sandbox) ?? []) {
      registry.find(hostOf(exchange.route)).then(
        (now) => {
          if (now === null || !isSame(exchange.route, now)) return socket.destroy();
          look(socket, exchange);
          const slept = exchange.route.sandbox.state === "running" && now.sandbox.state === "paused";
          exchange.route = now;
          // What came since it was frozen was found while it still seemed to run.
          const waits = exchange.awaits() || exchange.sentAt >= (now.sandbox.stateAt ?? 0);
          return slept && waits ? wake(now, socket) : undefined;
        },
        () => socket.destroy(),
      );
    }
  });
  const timer = setInterval(() => {
    for (const own of exchanges.values())
      for (const [socket, exchange] of own)
        if (look(socket, exchange) && canWake(exchange.route)) wake(exchange.route, socket);
  }, LOOK_MS);
  /** Whether its client has sent anything since the last look. */
  const look = (socket: Socket, exchange: Exchange): boolean => {
    const { route, read, written } = exchange;
    Object.assign(exchange, { read: socket.bytesRead, written: socket.bytesWritten });
    const sends = exchange.read !== read;
    if (sends) exchange.sentAt = Date.now();
    if (sends || exchange.written !== written || exchange.awaits()) activity.touch(route.sandbox);
    return sends;
  };
  return {
    destroyAll() {
      for (const own of exchanges.values()) for (const socket of own.keys()) socket.destroy();
    },
    add(route, socket, awaits = () => false) {
      const { id } = route.sandbox;
      const own = exchanges.get(id) ?? new Map<Socket, Exchange>();
      const exchange = { route, read: socket.bytesRead, written: socket.bytesWritten, sentAt: 0, awaits };
      exchanges.set(id, own.set(socket, exchange));
      return {
        [Symbol.dispose]() {
          look(socket, exchange);
          if (own.get(socket) === exchange) own.delete(socket);
          if (own.size === 0) exchanges.delete(id);
        },
      };
    },
    [Symbol.dispose]() {
      clearInterval(timer);
      off();
    },
  };
}

/** Frozen, a sandbox keeps its address, and the connections to it go on once it is woken. */
function isSame(before: Route, now: Route): boolean {
  const { sandbox, service } = now;
  const kept = sandbox.state === "paused" && sandbox.wakeOnHttp ? sandbox.address : now.address;
  return (
    service.epoch === before.service.epoch && service.port === before.service.port && kept === before.sandbox.address
  );
}

const hostOf = ({ service }: Route): string => parseHostHeader(new URL(service.url).host) ?? "";
