/** Connections to services: made before a request is read, kept for the next one, closed when the sandbox changes. */
import { once } from "node:events";
import { Agent, type ClientRequestArgs } from "node:http";
import { connect, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { Registry, Route } from "./registry.ts";

/** A guest that takes no connection within this long takes none. */
const CONNECT_MS = 5_000;
/** How long after a start a service that is not there may still be coming. */
const YOUNG_MS = 30_000;
/** Pauses between two looks whether a service is up. */
const PAUSE = { first: 10, last: 250 };

export interface Upstream extends Disposable {
  /** For requests without a body, which can be sent again: connections are used again. */
  pooled(route: Route): Agent;
  /** For those with a body: a connection of its own. */
  readonly fresh: Agent;
  /**
   * Whether the service takes connections; after a start or a resume it may need a while. `untilMs` on the monotonic
   * clock. True at once where the sandbox has been up for long.
   */
  isUp(route: Route, wait: { untilMs: number; signal: AbortSignal }): Promise<boolean>;
}

/** Hands a connection over once it stands, so that of a request's body nothing is read before. */
class ConnectedAgent extends Agent {
  override createConnection(
    options: ClientRequestArgs,
    callback?: (error: Error | null, socket: Socket) => void,
  ): undefined {
    const socket = connect({ host: options.host ?? "", port: Number(options.port), noDelay: true });
    socket.setTimeout(CONNECT_MS, () =>
      socket.destroy(Object.assign(new Error("the service takes no connection"), { code: "ETIMEDOUT" })),
    );
    const failed = (error: Error) => callback?.(error, socket);
    socket.once("error", failed);
    socket.once("connect", () => {
      socket.setTimeout(0);
      socket.off("error", failed);
      callback?.(null, socket);
    });
  }
}

/** Whether no connection was made: nothing of the request has gone anywhere. */
export const isUnreachable = (error: unknown): boolean =>
  error instanceof Error &&
  "code" in error &&
  ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"].includes(String(error.code));

export function createUpstream(registry: Registry): Upstream {
  const pools = new Map<string, Agent>();
  const fresh = new ConnectedAgent();
  const seen = new WeakSet<Route>();
  // A container that was stopped says no goodbye to its connections, and another may get its address.
  const off = registry.onChange((sandbox) => {
    const pool = pools.get(sandbox);
    if (pool === undefined) return;
    for (const sockets of Object.values(pool.freeSockets)) for (const socket of sockets ?? []) socket.destroy();
    pools.delete(sandbox);
  });
  return {
    fresh,
    pooled({ sandbox: { id } }) {
      const pool = pools.get(id) ?? new ConnectedAgent({ keepAlive: true, maxFreeSockets: 16, timeout: 4_000 });
      pools.set(id, pool);
      return pool;
    },
    async isUp(route, { untilMs, signal }) {
      const { sandbox, address = "", service } = route;
      const isYoung = () => Date.now() - (sandbox.stateAt ?? 0) < YOUNG_MS;
      if (!sandbox.wakeOnHttp || seen.has(route)) return true;
      for (let pauseMs = PAUSE.first; isYoung(); pauseMs = Math.min(pauseMs * 2, PAUSE.last)) {
        const leftMs = untilMs - performance.now();
        if (leftMs <= 0) return false;
        if (
          await takesConnections(
            address,
            service.port,
            AbortSignal.any([signal, AbortSignal.timeout(Math.ceil(leftMs))]),
          )
        )
          break;
        await delay(Math.max(1, Math.min(pauseMs, leftMs)), undefined, { signal });
      }
      seen.add(route);
      return true;
    },
    [Symbol.dispose]() {
      off();
      fresh.destroy();
      for (const pool of pools.values()) pool.destroy();
    },
  };
}

async function takesConnections(host: string, port: number, signal: AbortSignal): Promise<boolean> {
  const socket = connect({ host, port });
  try {
    await once(socket, "connect", { signal });
    return true;
  } catch {
    return false;
  } finally {
    socket.on("error", () => {});
    socket.destroy();
  }
}
