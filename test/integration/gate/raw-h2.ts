/** HTTP/2 as bytes: what no client library would send. Header fields go as literals, so that nothing needs to be known of HPACK. */
import { once } from "node:events";
import { type ConnectionOptions, connect, type TLSSocket } from "node:tls";

const TYPE = { data: 0, headers: 1, reset: 3, settings: 4, goaway: 7, continuation: 9 } as const;
const END_STREAM = 1;
const END_HEADERS = 4;

export type Field = readonly [name: string, value: string];

/** What was heard of one stream, or of the connection. */
export interface Heard {
  /** It was refused: the stream reset, or the connection given up. */
  refused: boolean;
  /** Of the response; 0: there is none. */
  status: number;
}

export interface RawH2 extends Disposable {
  /** Sends a request on a stream of its own, and waits for its end. */
  ask(fields: readonly Field[], body?: string): Promise<Heard>;
  headers(fields: readonly Field[], flags?: number): number;
  continuation(stream: number, fields: readonly Field[]): void;
  reset(stream: number): void;
  readonly closed: Promise<unknown>;
}

export async function connectH2(options: ConnectionOptions): Promise<RawH2> {
  const socket: TLSSocket = connect({ ...options, ALPNProtocols: ["h2"] });
  await once(socket, "secureConnect");
  socket.on("error", () => {});
  const closed = once(socket, "close");
  const heard = new Map<number, (heard: Heard) => void>();
  const endAll = () => {
    for (const tell of heard.values()) tell({ refused: true, status: 0 });
  };
  socket.once("close", endAll);
  let pending = Buffer.alloc(0);
  socket.on("data", (chunk: Buffer) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= 9 && pending.length >= 9 + pending.readUIntBE(0, 3)) {
      const length = pending.readUIntBE(0, 3);
      const [type, flags, stream] = [pending[3], pending[4] ?? 0, pending.readUInt32BE(5)];
      const payload = pending.subarray(9, 9 + length);
      pending = pending.subarray(9 + length);
      if (type === TYPE.settings && flags === 0) socket.write(frame(TYPE.settings, 1, 0, Buffer.alloc(0)));
      if (type === TYPE.headers) heard.get(stream)?.({ refused: false, status: statusOf(payload) });
      if (type === TYPE.reset) heard.get(stream)?.({ refused: true, status: 0 });
      if (type === TYPE.goaway) endAll();
    }
  });
  socket.write(
    Buffer.concat([Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(TYPE.settings, 0, 0, Buffer.alloc(0))]),
  );
  let next = 1;
  const headers: RawH2["headers"] = (fields, flags = END_STREAM | END_HEADERS) => {
    const stream = next;
    next += 2;
    socket.write(frame(TYPE.headers, flags, stream, encode(fields)));
    return stream;
  };
  return {
    closed,
    headers,
    ask(fields, body) {
      const answer = Promise.withResolvers<Heard>();
      const stream = headers(fields, END_HEADERS | (body === undefined ? END_STREAM : 0));
      heard.set(stream, answer.resolve);
      if (body !== undefined) socket.write(frame(TYPE.data, END_STREAM, stream, Buffer.from(body)));
      return answer.promise;
    },
    continuation: (stream, fields) => void socket.write(frame(TYPE.continuation, 0, stream, encode(fields))),
    reset: (stream) => void socket.write(frame(TYPE.reset, 0, stream, Buffer.from([0, 0, 0, 8]))),
    [Symbol.dispose]: () => socket.destroy(),
  };
}

function frame(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** "Literal header field without indexing, new name" (RFC 7541, 6.2.2), nothing in Huffman's code. */
const encode = (fields: readonly Field[]): Buffer =>
  Buffer.concat(fields.flatMap(([name, value]) => [Buffer.from([0]), text(name), text(value)]));

function text(value: string): Buffer {
  const bytes = Buffer.from(value, "latin1");
  if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  const length = [127];
  let left = bytes.length - 127;
  for (; left >= 128; left >>= 7) length.push((left & 127) | 128);
  return Buffer.concat([Buffer.from([...length, left]), bytes]);
}

/** The status stands first; Go takes one of the static table, or its index with a value in Huffman's code or as it is. */
function statusOf(block: Buffer): number {
  const [first = 0] = block;
  const known = [200, 204, 206, 304, 400, 404, 500];
  if ((first & 0x80) !== 0) return known[(first & 0x7f) - 8] ?? 0;
  const length = block[1] ?? 0;
  const value = block.subarray(2, 2 + (length & 0x7f));
  return Number((length & 0x80) === 0 ? value.toString("latin1") : digits(value));
}

/** Huffman's code of digits (RFC 7541, appendix B): 5 bits for 0 to 2, 6 for the others. */
function digits(bytes: Buffer): string {
  let bits = [...bytes].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  let all = "";
  while (bits.length >= 5) {
    const short = Number.parseInt(bits.slice(0, 5), 2);
    const long = Number.parseInt(bits.slice(0, 6), 2);
    if (short <= 2) [all, bits] = [all + short, bits.slice(5)];
    else if (bits.length >= 6 && long >= 25 && long <= 31) [all, bits] = [all + (long - 22), bits.slice(6)];
    else break;
  }
  return all;
}
