/** What a command prints: counted, its first bytes kept, each piece handed on as it comes. */
import { EXEC_MARK } from "../../shared/node-commands.ts";
import type { CommandResult, ShellCall } from "./node-shell.ts";

const KEEP_BYTES = 262_144;
/** Where the mark has not come by then it will not come; what a login shell prints of its own is shorter. */
const MARK_WITHIN = 16_384;

export type Texts = Pick<CommandResult, "stdout" | "stderr" | "stdoutBytes" | "stderrBytes" | "truncated">;

/** `marked`: stdout counts from behind EXEC_MARK on. */
export function createOutput({ keepBytes = KEEP_BYTES, onOutput }: ShellCall, { marked }: { marked: boolean }) {
  const kept = { stdout: createKeeper(keepBytes), stderr: createKeeper(keepBytes) };
  let begun = false;
  let ahead = Buffer.alloc(0);
  const add = (stream: "stdout" | "stderr", chunk: Buffer) => {
    if (chunk.length === 0) return;
    kept[stream].add(chunk);
    onOutput?.(stream, chunk);
  };
  return {
    add(stream: "stdout" | "stderr", chunk: Buffer) {
      if (!marked || begun || stream === "stderr") return add(stream, chunk);
      ahead = Buffer.concat([ahead, chunk]).subarray(0, MARK_WITHIN + chunk.length);
      const at = ahead.indexOf(EXEC_MARK);
      if (at < 0 || at > MARK_WITHIN) return;
      begun = true;
      add("stdout", ahead.subarray(at + EXEC_MARK.length));
    },
    begun: () => begun,
    texts: (): Texts => ({
      stdout: kept.stdout.text(),
      stderr: kept.stderr.text(),
      stdoutBytes: kept.stdout.bytes(),
      stderrBytes: kept.stderr.bytes(),
      truncated: kept.stdout.bytes() > keepBytes || kept.stderr.bytes() > keepBytes,
    }),
  };
}

function createKeeper(limit: number) {
  const chunks: Buffer[] = [];
  let bytes = 0;
  return {
    add(chunk: Buffer) {
      // A copy: a short piece would keep the whole packet.
      if (bytes < limit) chunks.push(Buffer.from(chunk.subarray(0, limit - bytes)));
      bytes += chunk.length;
    },
    bytes: () => bytes,
    /** Without the half of a character that a cut leaves. */
    text: () => {
      const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(Buffer.concat(chunks));
      return bytes > limit ? text.replace(/\uFFFD$/, "") : text;
    },
  };
}
