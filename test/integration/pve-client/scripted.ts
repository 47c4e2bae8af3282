import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { type Certificate, makeCertificate } from "../../pve/certificate.ts";

export interface Scripted extends AsyncDisposable {
  readonly url: string;
  readonly fingerprint: string;
  readonly caPem: string;
  /** `METHOD path` of all requests. */
  readonly requests: string[];
}

/** An HTTPS server that answers as a test says: what PVE itself never does, or a proxy in front of it. */
export async function startScripted(
  answer: (response: ServerResponse, request: IncomingMessage) => void,
  certificate?: Certificate,
): Promise<Scripted> {
  const { key, cert, fingerprint } = certificate ?? (await makeCertificate());
  const requests: string[] = [];
  const server = createServer({ key, cert }, (request, response) => {
    requests.push(`${request.method} ${request.url}`);
    request.resume();
    answer(response, request);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  // A TCP server's address is never a string.
  const { port } = server.address() as AddressInfo;
  return {
    url: `https://127.0.0.1:${port}`,
    fingerprint,
    caPem: cert,
    requests,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, "close");
      server.close();
      server.closeAllConnections();
      await closed;
    },
  };
}
