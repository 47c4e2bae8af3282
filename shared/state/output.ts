/**
 * The live output of a command: a stream of its own beside the operation's record, written in fenced steps (`write-scripts.ts`)
 * and bounded in bytes, so that the oldest goes first. An entry's id is `<run>-<bytes>`: when the run that wrote it began,
 * and how many bytes that run had put out by the end of the entry. Bytes missing between two entries were lost; a later
 * run means that the command was begun again, and earlier runs' entries are gone.
 */
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "./keys.ts";

/** Bytes of text that are kept of an operation. */
export const OUTPUT_KEPT_BYTES = 1_048_576;
/** Each costs Redis some bytes of its own. */
export const OUTPUT_KEPT_ENTRIES = 8_192;
/** What a shell has shown is kept no longer after its end. */
export const SHELL_OUTPUT_SEC = 300;
/** Pieces in an entry at most: Lua's `unpack` allows some thousands of words. */
export const OUTPUT_ENTRY_PIECES = 500;

export type StreamName = "stdout" | "stderr";

export interface OutputPiece {
  stream: StreamName;
  text: string;
}

/** Pieces in the order of their coming, and the bytes of the run up to their end. */
export interface OutputEntry {
  end: number;
  pieces: readonly OutputPiece[];
}

export interface StoredEntry extends OutputEntry {
  cursor: string;
  run: number;
}

const FIELD_OF = { stdout: "o", stderr: "e" } as const;

/** As the scripts take it: the end, then names and texts in turn. */
export const toOutputWords = ({ end, pieces }: OutputEntry): (string | number)[] => [
  end,
  ...pieces.flatMap(({ stream, text }) => [FIELD_OF[stream], text]),
];

/** Up to 2 MiB of what follows a cursor (`0` is before all), without waiting. */
export async function readOutput(
  redis: RedisConnection,
  keys: Keys,
  operation: string,
  cursor: string,
): Promise<StoredEntry[]> {
  const reply = await redis.xread("COUNT", 32, "STREAMS", keys.output(operation), cursor);
  return (reply?.[0]?.[1] ?? []).map(([id, fields]) => toEntry(id, fields));
}

function toEntry(cursor: string, fields: readonly string[]): StoredEntry {
  const [run = 0, end = 0] = cursor.split("-").map(Number);
  const pieces: OutputPiece[] = [];
  for (let at = 0; at + 1 < fields.length; at += 2)
    pieces.push({ stream: fields[at] === FIELD_OF.stderr ? "stderr" : "stdout", text: fields[at + 1] ?? "" });
  return { cursor, run, end, pieces };
}

/** How far the live output came, from the record's field: the last run that wrote it, and that run's bytes. */
export function toOutputMark(text: string): { run: number; bytes: number } {
  const [run = 0, bytes = 0] = text.split(" ").map(Number);
  return { run, bytes };
}
