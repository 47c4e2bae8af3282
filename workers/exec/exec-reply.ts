/** The JSON lines by which execd tells what a command prints and how it ended. */
import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import type { StreamName } from "../../shared/state/output.ts";
import type { ExecCall } from "./execd.ts";

/** What a command ended with. Output past the limit is counted, not kept. */
export interface ExecOutcome {
  exitCode: number;
  stdout: string;
  stderr: string;
  stdoutBytes: number;
  stderrBytes: number;
  truncated: boolean;
}

const Line = z.discriminatedUnion("type", [
  z.object({ type: z.literal("stdout"), data: z.string() }),
  z.object({ type: z.literal("stderr"), data: z.string() }),
  z.object({ type: z.literal("error"), message: z.string() }),
  z.object({ type: z.literal("exit"), code: z.number().int() }),
]);

/** execd's own limits: a line is at most 1 MiB; JSON may need up to 6 times that. */
const LINE_LIMIT = 8 * 1_048_576;
/** What keeping a piece of a line takes besides its bytes: a sandbox may send them one by one. */
const PIECE_COST = 128;

type Outcome = ExecOutcome | undefined;

/** Takes a reply as it comes, and gives what the command ended with once that has come; the next piece waits for a promise. */
export function createReply({ keepBytes, onOutput, readLine }: Pick<ExecCall, "keepBytes" | "onOutput" | "readLine">) {
  const streams = { stdout: createKeeper(keepBytes), stderr: createKeeper(keepBytes) };
  let parts: Buffer[] = [];
  let size = 0;
  let isOver = false;
  const hear = (line: Exclude<z.output<typeof Line>, { type: "exit" }>): unknown => {
    const { stream, text } = toPrinted(line, readLine);
    if (text === "") return undefined; // a framed mark; to keep each would cost memory
    streams[stream].add(text);
    return onOutput?.(stream, text);
  };
  const toOutcome = (exitCode: number): ExecOutcome => {
    isOver = true;
    const { stdout, stderr } = streams;
    return {
      exitCode,
      stdout: stdout.text(),
      stderr: stderr.text(),
      stdoutBytes: stdout.bytes(),
      stderrBytes: stderr.bytes(),
      truncated: stdout.truncated() || stderr.truncated(),
    };
  };
  const add = (chunk: Buffer): Outcome | Promise<Outcome> => {
    if (isOver) return undefined;
    let rest = chunk;
    for (let at = rest.indexOf(10); at >= 0; at = rest.indexOf(10)) {
      parts.push(rest.subarray(0, at));
      const text = Buffer.concat(parts).toString("utf8");
      parts = [];
      size = 0;
      rest = rest.subarray(at + 1);
      const line = Line.parse(JSON.parse(text));
      if (line.type === "exit") return toOutcome(line.code);
      const hearing = hear(line);
      if (hearing instanceof Promise) {
        const others = rest;
        return hearing.then(() => add(others));
      }
    }
    if (rest.length === 0) return undefined;
    size += rest.length + PIECE_COST;
    if (size > LINE_LIMIT) throw new FleetError("exec_interrupted", "the exec daemon sent an endless line");
    parts.push(rest);
    return undefined;
  };
  return {
    add,
    /** The last line may lack its line feed. */
    end: () => (size === 0 ? undefined : add(Buffer.from("\n"))),
    get isOver() {
      return isOver;
    },
  };
}

function toPrinted(
  line: Exclude<z.output<typeof Line>, { type: "exit" }>,
  readLine: ExecCall["readLine"],
): { stream: StreamName; text: string } {
  if (line.type === "error") return { stream: "stderr", text: `${line.message}\n` };
  if (line.type === "stdout" && readLine) return readLine(line.data);
  return { stream: line.type, text: `${line.data}\n` };
}

/** Keeps the first `limit` bytes of a stream of lines and counts all. */
function createKeeper(limit: number) {
  const kept: string[] = [];
  let keptBytes = 0;
  let bytes = 0;
  return {
    add(text: string) {
      const size = Buffer.byteLength(text);
      bytes += size;
      const room = limit - keptBytes;
      if (room <= 0) return;
      kept.push(
        size <= room ? text : new TextDecoder().decode(Buffer.from(text).subarray(0, room)).replace(/\uFFFD$/, ""),
      );
      keptBytes += Math.min(size, room);
    },
    text: () => kept.join(""),
    bytes: () => bytes,
    truncated: () => bytes > keptBytes,
  };
}
