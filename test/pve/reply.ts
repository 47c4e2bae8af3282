import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { gzipSync } from "node:zlib";

export interface Reply {
  status: number;
  reason: string;
  body: string;
  type?: string;
  headers?: Record<string, string>;
}

const MAX_PER_CONNECTION = 100;
const answered = new WeakMap<Socket, number>();

export function jsonReply(data: unknown, total?: number): Reply {
  const body = JSON.stringify({ data: data ?? null, ...(total ? { total } : {}) });
  return { status: 200, reason: "OK", body, type: "application/json;charset=UTF-8" };
}

/** pveproxy: 100 requests per connection, none after an error, and the headers that it sets. */
export function send(response: ServerResponse, reply: Reply): void {
  const { socket } = response;
  if (socket === null || socket.destroyed) return;
  const count = (answered.get(socket) ?? 0) + 1;
  answered.set(socket, count);
  const close = reply.status >= 400 || count >= MAX_PER_CONNECTION || wantsClose(response);
  const date = new Date().toUTCString();
  // PVE writes its own Date; Connection is named, so Node adds no Keep-Alive hint, which PVE does not send either.
  response.sendDate = false;
  response.setHeader("Cache-Control", "max-age=0");
  response.setHeader("Connection", close ? "close" : "Keep-Alive");
  response.setHeader("Date", date);
  response.setHeader("Pragma", "no-cache");
  response.setHeader("Server", "pve-api-daemon/3.0");
  response.setHeader("Expires", date);
  for (const [name, value] of Object.entries(reply.headers ?? {})) response.setHeader(name, value);
  if (reply.type !== undefined) response.setHeader("Content-Type", reply.type);
  response.statusCode = reply.status;
  response.statusMessage = phrase(reply.reason);
  if (reply.body === "") {
    // An empty body has no length either: it ends with the connection, or at once for a client that keeps it.
    if (close) {
      response.removeHeader("Content-Length");
      response.removeHeader("Transfer-Encoding");
    }
    response.end();
    return;
  }
  const plain = Buffer.from(reply.body);
  const zip = plain.length > 1024 && /gzip/.test(String(response.req.headers["accept-encoding"] ?? ""));
  const body = zip ? gzipSync(plain) : plain;
  if (zip) response.setHeader("Content-Encoding", "gzip");
  response.setHeader("Content-Length", body.length);
  response.end(body);
}

function wantsClose(response: ServerResponse): boolean {
  return /close/i.test(response.req.headers.connection ?? "") || response.req.httpVersion === "1.0";
}

/** The first line only, in what a header may hold. */
function phrase(text: string): string {
  return (text.split("\n")[0] ?? "").replace(/[^\t\x20-\x7e\x80-\xff]/g, "?");
}
