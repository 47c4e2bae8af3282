import { setMaxListeners } from "node:events";
import { createServer as createPlainServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer } from "node:https";
import { type AddressInfo, createServer as createNetServer, type Server, type Socket } from "node:net";
import type { Certificate } from "./certificate.ts";
import type { Exchange } from "./exchange.ts";

const IDLE_MS = 5000;

/** The HTTPS server. Plain HTTP on the same port is sent to HTTPS, as pveproxy does. */
export class ApiServer {
  readonly #front: Server;
  readonly #sockets = new Set<Socket>();

  constructor(certificate: Certificate, exchange: Exchange) {
    const onRequest = (request: IncomingMessage, response: ServerResponse) => void exchange.serve(request, response);
    const https = createServer({ key: certificate.key, cert: certificate.cert }, onRequest);
    const plain = createPlainServer(redirect);
    for (const server of [https, plain]) {
      server.keepAliveTimeout = IDLE_MS;
      server.keepAliveTimeoutBuffer = 0;
      setMaxListeners(0, server);
    }
    this.#front = createNetServer({ noDelay: true }, (socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
      socket.on("error", () => socket.destroy());
      socket.once("data", (first: Buffer) => {
        socket.pause();
        socket.unshift(first);
        // 22 opens a TLS handshake.
        (first[0] === 22 ? https : plain).emit("connection", socket);
        process.nextTick(() => socket.resume());
      });
    });
  }

  listen(port: number, host = "127.0.0.1"): Promise<number> {
    return new Promise((resolve, reject) => {
      this.#front.once("error", reject);
      this.#front.listen(port, host, () => resolve((this.#front.address() as AddressInfo).port));
    });
  }

  close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => this.#front.close(() => resolve()));
  }
}

function redirect(request: IncomingMessage, response: ServerResponse): void {
  const get = request.method === "GET" || request.method === "HEAD";
  const [status, text] = get ? ([301, "Moved Permanently"] as const) : ([308, "Permanent Redirect"] as const);
  response.writeHead(status, text, {
    Location: `https://${request.headers.host}${request.url}`,
    Connection: "close",
    Server: "pve-api-daemon/3.0",
    "Content-Length": text.length,
  });
  response.end(text);
}
