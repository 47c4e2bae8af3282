import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";

export interface Relay extends AsyncDisposable {
  readonly url: string;
  /** Connections so far. */
  readonly connections: number;
  /**
   * Cuts each connection that is open now as soon as the client writes to it again, nothing of that forwarded: as if
   * PVE had closed it just then.
   */
  cutAtReuse(): void;
  /** Who closes a connection first, from now on. */
  firstToClose(): Promise<"client" | "server">;
}

/** A TCP relay in front of the stand-in. It can do to connections what a server can't do to its own requests. */
export async function startRelay(target: string): Promise<Relay> {
  const to = Number(new URL(target).port);
  const clients = new Set<Socket>();
  const doomed = new WeakSet<Socket>();
  let connections = 0;
  let closing = Promise.withResolvers<"client" | "server">();
  const server = createServer((client) => {
    connections++;
    clients.add(client);
    const upstream = connect(to, "127.0.0.1");
    client.on("data", (data) => {
      if (doomed.has(client)) client.destroy();
      else upstream.write(data);
    });
    upstream.on("data", (data) => client.write(data));
    client.on("error", () => client.destroy());
    upstream.on("error", () => client.destroy());
    client.on("end", () => closing.resolve("client"));
    upstream.on("end", () => closing.resolve("server"));
    client.on("close", () => {
      clients.delete(client);
      upstream.destroy();
    });
    upstream.on("close", () => client.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  // A TCP server's address is never a string.
  const { port } = server.address() as AddressInfo;
  return {
    url: `https://127.0.0.1:${port}`,
    get connections() {
      return connections;
    },
    cutAtReuse: () => {
      for (const client of clients) doomed.add(client);
    },
    firstToClose: () => {
      closing = Promise.withResolvers();
      return closing.promise;
    },
    [Symbol.asyncDispose]: async () => {
      for (const client of clients) client.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

/** A port on which nobody listens. */
export async function closedPort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
