import { spawn } from "node:child_process";
import type { Readable } from "node:stream";
import { StringDecoder } from "node:string_decoder";

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

/** Cuts a stream into lines as execd's scanner does: without `\r`, without empty ones, at most 1 MiB each. Resolves when it reads no more. */
function readLines(stream: Readable, type: "stdout" | "stderr", { sink, signal }: Reading): Promise<void> {
  const decoder = new StringDecoder("utf8");
  const { promise, resolve } = Promise.withResolvers<void>();
  let rest = "";
  const emit = (line: string): boolean => {
    const data = line.replace(/\r+$/, "");
    return data === "" || sink.write({ type, data });
  };
  /** What comes after it stays in the pipe. */
  const stop = () => {
    stream.pause();
    resolve();
  };
  stream.on("data", (chunk: Buffer) => {
    if (signal.aborted) return stop();
    const lines = (rest + decoder.write(chunk)).split("\n");
    rest = lines.pop() ?? "";
    let keepsUp = true;
    for (const line of lines) keepsUp = emit(line) && keepsUp;
    if (rest.length > MAX_LINE) {
      // The scanner gives up and nobody reads on: the command blocks on a full pipe until its timeout.
      sink.write({ type: "error", message: `${type} read failed: bufio.Scanner: token too long` });
      stop();
    } else if (!keepsUp) {
      stream.pause();
      void sink.drained().then(() => stream.resume());
    }
  });
  stream.once("close", () => {
    if (rest !== "" && rest.length <= MAX_LINE) emit(rest);
    resolve();
  });
  return promise;
}

interface Reading {
  sink: Sink;
  /** Nobody listens any more. */
  signal: AbortSignal;
}

/** Node throws where there is no process, as for an argument that is too long. */
function begin(command: string, { cwd, env }: Shell) {
  try {
    // Detached, else what it does to its process group, it does to us.
    return spawn("/bin/bash", ["-c", command], { cwd, env, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

/**
 * Runs `/bin/bash -c command` as execd does (Go's exec.CommandContext): a timeout and the abort kill bash alone, not what it
 * has begun, and the exit event comes only when nobody holds its output any more, be it what runs in the background.
 */
export async function runCommand(
  command: string,
  shell: Shell,
  { timeoutMs, sink, signal }: { timeoutMs: number } & Reading,
): Promise<void> {
  const failed = (error: Error) => {
    sink.write({ type: "error", message: `spawn failed: ${error.message}` });
    sink.write({ type: "exit", code: 127 });
  };
  const child = begin(command, shell);
  if (child instanceof Error) return failed(child);
  const exited = new Promise<{ code: number } | Error>((resolve) => {
    child.once("error", resolve);
    child.once("exit", (code) => resolve({ code: code ?? -1 }));
  });
  const kill = () => void child.kill("SIGKILL");
  let timedOut = false;
  const onTimeout = () => {
    timedOut = true;
    kill();
  };
  const timer = timeoutMs > 0 ? setTimeout(onTimeout, timeoutMs) : undefined;
  signal.addEventListener("abort", kill, { once: true });
  await Promise.all([
    readLines(child.stdout, "stdout", { sink, signal }),
    readLines(child.stderr, "stderr", { sink, signal }),
  ]);
  const outcome = await exited;
  clearTimeout(timer);
  signal.removeEventListener("abort", kill);
  child.stdout.destroy();
  child.stderr.destroy();
  if (outcome instanceof Error) return failed(outcome);
  if (timedOut) sink.write({ type: "error", message: `timeout after ${timeoutMs}ms` });
  sink.write({ type: "exit", code: timedOut ? 124 : outcome.code });
}
