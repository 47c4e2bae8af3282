/** A collector of traces: what OTLP's exporter posts to it, read from its protobuf (opentelemetry/proto/trace/v1/trace.proto). */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";

export interface CollectedSpan {
  trace: string;
  id: string;
  /** "" of a root. */
  parent: string;
  name: string;
  attributes: Record<string, string>;
  /** Ids of the spans that it links to. */
  links: string[];
}

export interface Collector extends AsyncDisposable {
  readonly url: string;
  spans(): CollectedSpan[];
  /** All that was posted, as text. */
  raw(): string;
}

export async function startCollector(): Promise<Collector> {
  const bodies: Buffer[] = [];
  const server = createServer(async (request, reply) => {
    if (request.url === "/v1/traces") bodies.push(await buffer(request));
    reply.writeHead(200, { "content-type": "application/x-protobuf" }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, // of a TCP server
    spans: () => bodies.flatMap((body) => nested(body, 1, 2, 2).map(toSpan)),
    raw: () => Buffer.concat(bodies).toString("utf8"),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function toSpan(bytes: Buffer): CollectedSpan {
  const hex = (field: number) => fieldsOf(bytes, field)[0]?.toString("hex") ?? "";
  const text = (of: Buffer, field: number) => fieldsOf(of, field)[0]?.toString("utf8") ?? "";
  const attributes = fieldsOf(bytes, 9).map((pair) => [text(pair, 1), nested(pair, 2, 1)[0]?.toString("utf8") ?? ""]);
  return {
    trace: hex(1),
    id: hex(2),
    parent: hex(4),
    name: text(bytes, 5),
    attributes: Object.fromEntries(attributes),
    links: fieldsOf(bytes, 13).map((link) => fieldsOf(link, 2)[0]?.toString("hex") ?? ""),
  };
}

const nested = (message: Buffer, ...path: number[]): Buffer[] =>
  path.reduce<Buffer[]>((messages, field) => messages.flatMap((one) => fieldsOf(one, field)), [message]);

/** The length-delimited fields of a message with this number. */
function fieldsOf(message: Buffer, wanted: number): Buffer[] {
  const found: Buffer[] = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = message[at++] ?? 0;
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = varint();
    const [field, wire] = [tag >> 3, tag & 7];
    if (wire === 0) varint();
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else {
      const length = varint();
      if (field === wanted) found.push(message.subarray(at, at + length));
      at += length;
    }
  }
  return found;
}
