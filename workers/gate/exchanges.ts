/** Open exchanges end with their route: a sandbox that is gone must not be talked to over a connection from before. */
import type { Socket } from "node:net";
import { parseHostHeader } from "../../shared/url-pattern.ts";
import type { Registry, Route } from "./registry.ts";

export interface Exchanges {
  /** Until it is disposed of, the socket is destroyed when its route is another. */
  add(route: Route, socket: Socket): Disposable;
  destroyAll(): void;
}

export function createExchanges(registry: Registry): Exchanges {
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
    add(route, socket) {
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
