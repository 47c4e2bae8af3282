/** execd's `POST /files`: a tar is unpacked in /workspace, by `tar -x` as it comes. */
import { Readable } from "node:stream";
import { Client } from "undici";
import { FleetError } from "../../shared/errors.ts";
import { CONNECT_MS, createGate, originOf, refused } from "./execd.ts";

/** Where execd unpacks. */
export const WORKSPACE = "/workspace";

export interface SendCall {
  address: string;
  token: string;
  tar: AsyncIterable<Uint8Array>;
  /** Bytes of the tar. */
  length: number;
  signal: AbortSignal;
  /** Called right before the request is written to its connection; what it throws comes through, and nothing is sent. */
  guard?: (() => void) | undefined;
}

/** Between two signs of life of the daemon. */
const PATIENCE_MS = 60_000;
/** What it says of the unpacking is short; a sandbox may have put anything in its place. */
const REPLY_LIMIT = 65_536;

/**
 * False: this daemon has no `/files`, or can't unpack in its folder (there is no tar, the folder is read-only); a part may lie
 * there then. Throws `execd_unreachable` when nothing was sent, `execd_unauthorized`, `disk_full`, and `transfer_interrupted`
 * when it is unknown what was unpacked.
 */
export async function sendFiles({ address, token, tar, length, signal, guard }: SendCall): Promise<boolean> {
  signal.throwIfAborted();
  const client = new Client(originOf(address), {
    connect: { timeout: CONNECT_MS },
    headersTimeout: PATIENCE_MS,
    bodyTimeout: PATIENCE_MS,
    maxResponseSize: REPLY_LIMIT,
  });
  const gate = createGate(guard);
  let broken: unknown;
  const body = async function* () {
    try {
      yield* tar;
    } catch (error) {
      broken = error;
      throw error;
    }
  };
  try {
    const reply = await client.compose(gate.interceptor).request({
      path: "/files",
      method: "POST",
      headers: {
        "content-type": "application/x-tar",
        "content-length": String(length),
        authorization: `Bearer ${token}`,
      },
      body: Readable.from(body()),
      signal,
    });
    const text = await reply.body.text();
    if (reply.statusCode === 200) return true;
    if (reply.statusCode === 401 || reply.statusCode === 403) throw refused(address, reply.statusCode);
    if (NO_SPACE.test(text)) throw new FleetError("disk_full", "the sandbox's disk is full");
    return false;
  } catch (error) {
    gate.throwIfRefused();
    signal.throwIfAborted();
    if (broken !== undefined) throw broken; // the content could not be read; execd heard no more than that
    if (error instanceof FleetError) throw error;
    if (!gate.passed()) {
      throw new FleetError("execd_unreachable", `the exec daemon at ${address} can't be reached`, { cause: error });
    }
    throw new FleetError(
      "transfer_interrupted",
      "the connection to the exec daemon broke in the middle of a transfer",
      {
        cause: error,
      },
    );
  } finally {
    await client.destroy();
  }
}

export const NO_SPACE = /No space left on device|Disk quota exceeded/;

const BLOCK = 512;

export const tarLength = (bytes: number): number => 2 * BLOCK + padded(bytes) + 2 * BLOCK;
const padded = (bytes: number) => Math.ceil(bytes / BLOCK) * BLOCK;

/** A tar of one file in a folder that nobody but root may look into (POSIX.1-2024 pax, "ustar Interchange Format"). */
export async function* toTar(
  folder: string,
  file: string,
  content: AsyncIterable<Uint8Array>,
  bytes: number,
): AsyncGenerator<Uint8Array> {
  yield toHeader({ name: `${folder}/`, mode: 0o700, size: 0, type: "5" });
  yield toHeader({ name: `${folder}/${file}`, mode: 0o600, size: bytes, type: "0" });
  yield* content;
  yield Buffer.alloc(padded(bytes) - bytes + 2 * BLOCK);
}

function toHeader({ name, mode, size, type }: { name: string; mode: number; size: number; type: "0" | "5" }): Buffer {
  const header = Buffer.alloc(BLOCK);
  const octal = (value: number, digits: number) => value.toString(8).padStart(digits, "0");
  header.write(name, 0, 100);
  header.write(`${octal(mode, 7)}\0${octal(0, 7)}\0${octal(0, 7)}\0${octal(size, 11)}\0`, 100);
  header.write(`${octal(Math.floor(Date.now() / 1_000), 11)}\0${" ".repeat(8)}${type}`, 136);
  header.write("ustar\x0000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0); // with the checksum's own field as spaces
  header.write(`${octal(sum, 6)}\0 `, 148);
  return header;
}
