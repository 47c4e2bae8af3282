/** What talks to the gate in tests, and the service behind it. */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders, request as send } from "node:http";
import { connect } from "node:net";
import type { Gate } from "../../../workers/gate/gate.ts";

/** A server in the guest that tells what reached it; echoes what comes over an upgraded connection. */
export async function startEcho(address: string, port: number): Promise<AsyncDisposable> {
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ method: request.method, url: request.url, headers: request.headers, body }));
  });
  server.on("upgrade", (_request, socket) => {
    socket.on("error", () => socket.destroy());
    socket.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    socket.pipe(socket);
  });
  server.listen(port, address);
  await once(server, "listening");
  return {
    async [Symbol.asyncDispose]() {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

export interface Reply {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
}

export interface Asked {
  path?: string;
  method?: string;
  headers?: Record<string, string>;
  body?: string;
  /** Of 127.0.0.0/8: whom the gate sees it come from. */
  from?: string;
}

export async function askGate(
  gate: Gate,
  host: string,
  { path = "/", method = "GET", headers = {}, body = "", from: localAddress = "127.0.0.1" }: Asked = {},
): Promise<Reply> {
  const { hostname, port } = new URL(gate.url);
  const request = send({ hostname, port, path, method, agent: false, localAddress, headers: { host, ...headers } });
  if (headers["expect"] === undefined) request.end(body);
  else request.once("continue", () => request.end(body));
  const [response] = await once(request, "response");
  let text = "";
  for await (const chunk of response) text += chunk;
  return { status: response.statusCode, headers: response.headers, text };
}

export async function upgradeAt(gate: Gate, host: string, headers: Record<string, string>) {
  const { hostname, port } = new URL(gate.url);
  const socket = connect(Number(port), hostname);
  const lines = Object.entries({ host, connection: "Upgrade", upgrade: "websocket", ...headers }).map(
    ([name, value]) => `${name}: ${value}\r\n`,
  );
  socket.write(`GET /ws HTTP/1.1\r\n${lines.join("")}\r\n`);
  const [head] = await once(socket, "data");
  return { socket, status: Number(/^HTTP\/1\.1 (\d+)/.exec(String(head))?.[1]) };
}

/** Asks until the answer is 404: within 200 ms, or within a few questions where a machine that is busy with others takes longer for each. */
export async function expectHidden(ask: () => Promise<Pick<Reply, "status">>): Promise<void> {
  const begun = performance.now();
  let asked = 0;
  for (let status = 0; status !== 404; asked++) {
    ({ status } = await ask());
    if (performance.now() - begun > 200 && asked > 5) throw new Error(`${status} after ${asked} questions`);
  }
}

/** What the echo told of a request. */
export const seen = ({ text }: Reply) =>
  JSON.parse(text) as { method: string; url: string; headers: Record<string, string>; body: string };
