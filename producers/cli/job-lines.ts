/** Jobs from JSON lines, read as they are accepted: each item's index is its line's, counted from 0, so that a file can be gone on with. */
import { createReadStream } from "node:fs";
import { access, constants, stat } from "node:fs/promises";
import { FleetError } from "../../shared/errors.ts";
import type { BadJob, BatchJob } from "../index.ts";
import { reasonOf } from "./local-files.ts";

/** No job is that long. */
const LINE_BYTES = 4 * 1_048_576;
const NEWLINE = 0x0a;

export const lineOf = (index: number): number => index + 1;

/** Before anything is begun. Throws `invalid_input` for what is no file that can be read; `-` is stdin. */
export async function checkJobs(file: string): Promise<void> {
  if (file === "-") return;
  try {
    if ((await stat(file)).isDirectory()) throw unreadable(`${file}: is a folder`);
    await access(file, constants.R_OK);
  } catch (cause) {
    throw cause instanceof FleetError ? cause : unreadable(`${file}: ${reasonOf(cause)}`, cause);
  }
}

const unreadable = (text: string, cause?: unknown): FleetError =>
  new FleetError("invalid_input", `${text}; give a file with one job a line, or - for stdin`, {
    cause,
    facts: { fields: ["file"] },
  });

/** From a file, or from stdin with `-`. Throws `invalid_input` where it can't be read, `interrupt`'s reason when the user leaves. */
export async function* readJobs(file: string, interrupt: AbortSignal): AsyncGenerator<BatchJob | BadJob> {
  const input: NodeJS.ReadableStream & { destroy(): unknown } = file === "-" ? process.stdin : createReadStream(file);
  const leave = () => void input.destroy();
  interrupt.addEventListener("abort", leave, { once: true });
  try {
    let index = 0;
    for await (const line of toLines(input)) {
      if (line === null || line.trim() !== "") yield toJob(line, index);
      index++;
    }
  } catch (cause) {
    interrupt.throwIfAborted();
    if (cause instanceof FleetError) throw cause;
    throw unreadable(`${file}: ${reasonOf(cause)}`, cause);
  } finally {
    interrupt.removeEventListener("abort", leave);
  }
  interrupt.throwIfAborted();
}

/** Null for one that is too long. */
export async function* toLines(input: AsyncIterable<Uint8Array | string>): AsyncGenerator<string | null> {
  let pieces: Uint8Array[] = [];
  let bytes = 0;
  const take = (): string | null => {
    const line = bytes > LINE_BYTES ? null : Buffer.concat(pieces).toString("utf8");
    pieces = [];
    bytes = 0;
    return line;
  };
  const add = (piece: Uint8Array) => {
    bytes += piece.length;
    if (bytes <= LINE_BYTES) pieces.push(piece);
    else pieces = [];
  };
  for await (const chunk of input) {
    let rest: Uint8Array = typeof chunk === "string" ? Buffer.from(chunk) : chunk;
    for (let at = rest.indexOf(NEWLINE); at >= 0; at = rest.indexOf(NEWLINE)) {
      add(rest.subarray(0, at));
      yield take();
      rest = rest.subarray(at + 1);
    }
    if (rest.length > 0) add(rest);
  }
  if (bytes > 0) yield take();
}

const WANTED = 'must be a JSON object such as {"kind":"destroy","input":{"sandboxId":"sbx_..."}}';

/** What can't be a job fails as one, so that the others go on; the client checks the rest. Never with what stands in it. */
function toJob(line: string | null, index: number): BatchJob | BadJob {
  const refuse = (problem: string): BadJob => ({
    index,
    error: new FleetError("invalid_input", problem, { facts: { line: lineOf(index) } }),
  });
  if (line === null) return refuse(`must be at most ${LINE_BYTES} bytes long`);
  try {
    const job: unknown = JSON.parse(line.trim()); // a byte order mark counts as white space there
    if (typeof job !== "object" || job === null || Array.isArray(job)) return refuse(WANTED);
    return { ...job, index } as BatchJob; // checked by the client, field by field
  } catch {
    return refuse(`is no JSON; ${WANTED}`);
  }
}
