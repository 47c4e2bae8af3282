/** A real worker process, so that a crash is a crash. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { CHILD_ENV } from "../../child-env.ts";

const MAIN = fileURLToPath(new URL("../../../workers/main.ts", import.meta.url));
const READY_WITHIN_MS = 60_000;

export interface WorkerProcess extends AsyncDisposable {
  readonly pid: number;
  /** Everything that it has written. */
  output(): string;
  /** Sends a signal; resolves with the exit code once the process has gone, null after a SIGKILL. */
  end(signal: "SIGKILL" | "SIGTERM" | "SIGINT"): Promise<number | null>;
}

/** Resolves once it takes jobs. */
export async function startWorkerProcess(env: Record<string, string>): Promise<WorkerProcess> {
  const level = env["LOG_LEVEL"] === "silent" ? "info" : env["LOG_LEVEL"];
  const child = spawn(process.execPath, [MAIN], {
    env: { ...CHILD_ENV, ...env, LOG_LEVEL: level ?? "info" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const written: string[] = [];
  const ready = Promise.withResolvers<void>();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      written.push(text);
      if (text.includes("workers started")) ready.resolve();
    });
  }
  const gone = once(child, "close").then(() => ready.reject(new Error(`worker ended at once:\n${written.join("")}`)));
  const late = setTimeout(() => ready.reject(new Error(`worker is not up:\n${written.join("")}`)), READY_WITHIN_MS);
  try {
    await ready.promise;
  } catch (error) {
    child.kill("SIGKILL"); // nobody else knows of it
    throw error;
  } finally {
    clearTimeout(late);
  }
  return {
    pid: child.pid ?? 0,
    output: () => written.join(""),
    async end(signal) {
      child.kill(signal);
      await gone;
      return child.exitCode;
    },
    async [Symbol.asyncDispose]() {
      if (isAlive(child)) child.kill("SIGKILL");
      await gone;
    },
  };
}

const isAlive = (child: ChildProcess) => child.exitCode === null && child.signalCode === null;
