/**
 * Connections that a proxy in front has made ahead of its requests (Go does, where another becomes free first). Node ends them
 * with a 408, like those of clients that never say what they want, and a proxy that sends its first request just then takes that
 * for the answer. So they may wait for as long as one that has been used.
 */
import { type Server, STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { Trust } from "./client-address.ts";

/** As Node answers by itself. */
const STATUS: Readonly<Record<string, number>> = {
  ERR_HTTP_REQUEST_TIMEOUT: 408,
  HPE_CHUNK_EXTENSIONS_OVERFLOW: 413,
  HPE_HEADER_OVERFLOW: 431,
};

/** How long who is refused may go on sending; a reset would take the answer from it, and a proxy would tell of a gate that is down. */
const LINGER_MS = 1_000;

/** Until it is disposed of, which ends them. */
export function keepUnused(server: Server, isTrusted: Trust, idleMs: number): Disposable {
  const kept = new Set<Socket>();
  const refuse = (socket: Socket, code: string) => {
    const status = STATUS[code] ?? 400;
    // Behind an answer, or in the middle of one, it would be taken for something else.
    if (socket.bytesWritten > 0 || !socket.writable) return socket.destroySoon();
    socket.removeAllListeners("data").on("data", () => {});
    socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\n\r\n`);
    const timer = setTimeout(() => socket.destroy(), LINGER_MS);
    socket.once("close", () => clearTimeout(timer));
  };
  server.on("clientError", (error: NodeJS.ErrnoException, socket: Socket) => {
    const { code = "" } = error;
    if (code !== "ERR_HTTP_REQUEST_TIMEOUT" || socket.bytesRead > 0 || !isTrusted(socket.remoteAddress))
      return refuse(socket, code);
    const timer = setTimeout(() => socket.bytesRead === 0 && socket.destroy(), idleMs);
    kept.add(socket);
    socket.once("close", () => {
      clearTimeout(timer);
      kept.delete(socket);
    });
  });
  return {
    [Symbol.dispose]() {
      for (const socket of kept) socket.destroy();
    },
  };
}
