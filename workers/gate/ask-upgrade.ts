/** A request for a WebSocket on its way to its service, over a connection that node has given up as one of HTTP. */
import { type Agent, type IncomingHttpHeaders, type IncomingMessage, ServerResponse, request as send } from "node:http";
import type { Socket } from "node:net";
import { cleanResponse } from "./clean-headers.ts";
import type { Route } from "./registry.ts";

/** For answers other than the upgrade; the connection ends with them. Null: a request before it still waits for its own there. */
export function createLastResponse(request: IncomingMessage, socket: Socket): ServerResponse | null {
  const response = new ServerResponse(request);
  response.shouldKeepAlive = false;
  try {
    response.assignSocket(socket);
  } catch {
    return null; // ERR_HTTP_SOCKET_ASSIGNED
  }
  response.once("finish", () => {
    response.detachSocket(socket);
    socket.destroySoon();
  });
  return response;
}

/**
 * Resolves once the service has answered, and the client knows: with the connection to the service where it upgrades; null
 * where it says something else, which goes on as any response. `agent` makes a connection that nobody else gets.
 */
export function askUpgrade(
  request: IncomingMessage,
  response: ServerResponse,
  { address: host, service: { port } }: Route,
  agent: Agent,
): Promise<Socket | null> {
  const { "content-length": _, "transfer-encoding": __, expect: ___, ...headers } = request.headers;
  const { socket } = request;
  return new Promise((resolve, reject) => {
    const asked = { host, port, path: request.url, agent };
    const sent = send({ ...asked, headers: { ...headers, connection: "Upgrade", upgrade: "websocket" } });
    const leave = () => sent.destroy();
    socket.once("close", leave);
    sent.once("error", reject);
    sent.once("response", (answer) => {
      const { statusCode = 0 } = answer;
      // A switch to nothing; what is below 100 is no status, and node throws where it is sent on.
      if (statusCode < 200) return reject(new Error(`the service answered ${statusCode}, which says nothing`));
      cleanResponse(answer.headers);
      response.writeHead(statusCode, answer.headers);
      answer.once("error", () => response.destroy());
      answer.pipe(response);
      resolve(null);
    });
    sent.once("upgrade", (answer, service, head) => {
      socket.off("close", leave);
      if (socket.destroyed || answer.headers.upgrade?.toLowerCase() !== "websocket") {
        service.destroy();
        return reject(new Error("the service switched to something else than was asked for"));
      }
      if (head.length > 0) service.unshift(head);
      response.detachSocket(socket);
      socket.write(toSwitch(answer.headers), "latin1");
      resolve(service);
    });
    sent.end();
  });
}

function toSwitch(headers: IncomingHttpHeaders): string {
  cleanResponse(headers);
  const { "cache-control": _, ...told } = headers;
  const lines = Object.entries({ connection: "Upgrade", upgrade: "websocket", ...told }).flatMap(([name, value]) =>
    [value ?? []].flat().map((one) => `${name}: ${one}\r\n`),
  );
  return `HTTP/1.1 101 Switching Protocols\r\n${lines.join("")}\r\n`;
}
