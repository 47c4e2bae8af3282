import { spawn } from "node:child_process";
import { StringDecoder } from "node:string_decoder";
import { setImmediate as nextTurn } from "node:timers/promises";

export type ExecEvent =
  | { type: "stdout" | "stderr"; data: string }
  | { type: "error"; message: string }
  | { type: "exit"; code: number };

export interface Shell {
  cwd: string;
  env: Record<string, string>;
}

/** Where events go; `write` says whether the receiver keeps up, `drained` when it does again. */
export interface Sink {
  write(event: ExecEvent): boolean;
  drained(): Promise<void>;
}

const MAX_LINE = 1024 * 1024;
/** What is still in the pipes after bash has gone is read for this long; a background process may hold them for ever. */
const REST_MS = 40;

/** Cuts a stream into lines as execd's scanner does: without `\r`, without empty ones, at most 1 MiB each. */
function readLines(stream: NodeJS.ReadableStream, type: "stdout" | "stderr", sink: Sink): () => void {
  const decoder = new StringDecoder("utf8");
  let rest = "";
  let broken = false;
  const emit = (line: string): boolean => {
    const data = line.replace(/\r+$/, "");
    return data === "" || sink.write({ type, data });
  };
  stream.on("data", (chunk: Buffer) => {
    const lines = (rest + decoder.write(chunk)).split("\n");
    rest = lines.pop() ?? "";
    let keepsUp = true;
    for (const line of lines) keepsUp = emit(line) && keepsUp;
    if (rest.length > MAX_LINE) {
      // The scanner gives up and nobody reads on: the command blocks on a full pipe until its timeout.
      broken = true;
      sink.write({ type: "error", message: `${type} read failed: bufio.Scanner: token too long` });
      stream.pause();
    } else if (!keepsUp) {
      stream.pause();
      void sink.drained().then(() => stream.resume());
    }
  });
  return () => {
    if (!broken && rest !== "") emit(rest);
    rest = "";
  };
}

/** Runs `/bin/bash -c command` in a process group of its own; the abort kills the group. Ends with the exit event. */
export async function runCommand(
  command: string,
  shell: Shell,
  { timeoutMs, sink, signal }: { timeoutMs: number; sink: Sink; signal: AbortSignal },
): Promise<void> {
  const child = spawn("/bin/bash", ["-c", command], {
    cwd: shell.cwd,
    env: shell.env,
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const exited = new Promise<number | Error>((resolve) => {
    child.once("error", resolve);
    child.once("exit", (code) => resolve(code ?? -1));
  });
  const kill = () => {
    if (child.pid === undefined) return;
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // The group has ended.
    }
  };
  let timedOut = false;
  const timer =
    timeoutMs > 0
      ? setTimeout(() => {
          timedOut = true;
          kill();
        }, timeoutMs)
      : undefined;
  signal.addEventListener("abort", kill, { once: true });
  const flushes = [readLines(child.stdout, "stdout", sink), readLines(child.stderr, "stderr", sink)];
  const closed = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const outcome = await exited;
  clearTimeout(timer);
  signal.removeEventListener("abort", kill);
  if (!(outcome instanceof Error)) {
    await within(closed, REST_MS);
    await nextTurn(); // on a busy machine the timer comes before what is there to be read
  }
  for (const flush of flushes) flush();
  child.stdout.destroy();
  child.stderr.destroy();
  if (outcome instanceof Error) sink.write({ type: "error", message: `spawn failed: ${outcome.message}` });
  else if (timedOut) sink.write({ type: "error", message: `timeout after ${timeoutMs}ms` });
  sink.write({ type: "exit", code: outcome instanceof Error ? 127 : timedOut ? 124 : outcome });
}

async function within(done: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([done, late]);
  clearTimeout(timer);
}
