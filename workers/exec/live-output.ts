/**
 * What a command prints, on its way to those who watch it live. Pieces are gathered for a moment and written one batch
 * after the other, so that a busy command costs Redis 50 small writes a second at most and a short one none at all.
 */
import { StringDecoder } from "node:string_decoder";
import { setTimeout as pause } from "node:timers/promises";
import {
  OUTPUT_ENTRY_PIECES,
  OUTPUT_KEPT_BYTES,
  type OutputEntry,
  type OutputPiece,
  type StreamName,
} from "../../shared/state/output.ts";

const BATCH_BYTES = 65_536;
/** Who watches is told by each write; who comes while nothing is written is known by the next one. */
type Audience = "unknown" | "alone" | "watched";
/** Between two batches while nobody watches, and for those who do: then 13 MB/s get through, and the stream holds 80 ms of it. */
const PAUSE_MS = { unknown: 20, alone: 20, watched: 5 } as const satisfies Record<Audience, number>;
/** What waits to be written; beyond it the oldest is dropped. */
const WAITING_BYTES = {
  unknown: 8 * OUTPUT_KEPT_BYTES,
  alone: OUTPUT_KEPT_BYTES,
  watched: 8 * OUTPUT_KEPT_BYTES,
} as const satisfies Record<Audience, number>;
/** Likewise, since a sandbox may change the stream with each byte; and a longer array is moved in memory for each one taken. */
const WAITING_PIECES = 8_192;

/** Writes entries; tells how many listen, or that this run may not write any more. */
type Write = (entries: readonly OutputEntry[]) => Promise<number | "refused">;

export interface LiveOutput {
  /** Never makes the command wait: execd drops what a command that has ended left unread. */
  add(stream: StreamName, chunk: string | Buffer): void;
  /** Takes no more; writes what watchers could not keep up with otherwise, and returns the rest. */
  close(): Promise<OutputEntry[]>;
  /** Whether anything was written. */
  readonly written: boolean;
  /** Bytes that wait to be written. */
  readonly backlog: number;
}

export function createLiveOutput(write: Write): LiveOutput {
  const decoders = { stdout: new StringDecoder("utf8"), stderr: new StringDecoder("utf8") };
  const waiting: (OutputPiece & { end: number; bytes: number })[] = [];
  let total = 0;
  let waitingBytes = 0;
  let audience: Audience = "unknown";
  let written = false;
  let refused = false;
  let writing: Promise<void> | undefined;
  const closing = new AbortController();

  /** Pieces without a gap between them: an entry's begin is its end less their bytes. */
  const takeEntry = (): OutputEntry => {
    const pieces: OutputPiece[] = [];
    let end = 0;
    for (let bytes = 0; bytes < BATCH_BYTES && pieces.length < OUTPUT_ENTRY_PIECES; ) {
      const next = waiting.shift();
      if (!next) break;
      pieces.push({ stream: next.stream, text: next.text });
      end = next.end;
      bytes += next.bytes;
      waitingBytes -= next.bytes;
    }
    return { end, pieces };
  };
  const writeBatch = async () => {
    written = true;
    const listeners = await write([takeEntry()]).catch(() => "refused" as const); // the run meets Redis' trouble itself
    refused ||= listeners === "refused";
    audience = listeners === 0 ? "alone" : "watched";
    dropOldest();
  };
  const writeAll = async () => {
    while (waiting.length > 0 && !refused) {
      const { signal } = closing;
      await pause(PAUSE_MS[audience], undefined, signal.aborted ? {} : { signal }).catch(() => {});
      if (signal.aborted && (audience === "alone" || waitingBytes <= BATCH_BYTES)) break;
      await writeBatch();
    }
    if (audience === "alone") audience = "unknown";
    writing = undefined;
  };
  const isTooMuch = () =>
    waiting.length > WAITING_PIECES || (waitingBytes > WAITING_BYTES[audience] && waiting.length > 1);
  const dropOldest = () => {
    while (isTooMuch()) waitingBytes -= waiting.shift()?.bytes ?? 0;
  };
  const push = (stream: StreamName, text: string) => {
    if (text === "" || refused) return;
    const bytes = Buffer.byteLength(text);
    total += bytes;
    waitingBytes += bytes;
    const last = waiting.at(-1);
    if (last?.stream === stream && last.bytes + bytes <= BATCH_BYTES) {
      last.text += text;
      last.bytes += bytes;
      last.end = total;
    } else {
      waiting.push({ stream, text, bytes, end: total });
    }
    dropOldest();
    writing ??= writeAll();
  };
  return {
    add(stream, chunk) {
      // Half a surrogate pair, which JSON can carry, is no text to Lua's JSON reader.
      push(stream, (typeof chunk === "string" ? chunk : decoders[stream].write(chunk)).toWellFormed());
    },
    async close() {
      for (const stream of ["stdout", "stderr"] as const) push(stream, decoders[stream].end());
      if (writing) closing.abort();
      await writing;
      const rest: OutputEntry[] = [];
      while (waiting.length > 0 && !refused) rest.push(takeEntry());
      return rest;
    },
    get written() {
      return written;
    },
    get backlog() {
      return waitingBytes;
    },
  };
}
