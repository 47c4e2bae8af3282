/** Worker processes under a supervisor that starts a new one whenever one has gone, as systemd or Docker would. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, mkdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(new URL("../../workers/main.ts", import.meta.url));
const RESPAWN_MS = 300;

export interface Crew extends AsyncDisposable {
  /** Sends a signal to the worker at this place; nothing while there is none. */
  signal(worker: number, signal: NodeJS.Signals): void;
  /** SIGCONT to all. */
  wake(): void;
  /** How often a worker ended without being killed. */
  readonly ownEnds: readonly string[];
}

export interface CrewOptions {
  workers: number;
  env: Readonly<Record<string, string>>;
  /** Where their output goes; nowhere when absent. */
  logs: string | undefined;
}

export function startCrew({ workers, env, logs }: CrewOptions): Crew {
  if (logs !== undefined) mkdirSync(logs, { recursive: true });
  const children: (ChildProcess | undefined)[] = [];
  const timers = new Set<NodeJS.Timeout>();
  const ownEnds: string[] = [];
  let closing = false;
  const start = (at: number) => {
    const child = spawn(process.execPath, [MAIN], {
      env: { PATH: process.env["PATH"] ?? "", ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    children[at] = child;
    let last = "";
    const file = logs === undefined ? undefined : createWriteStream(join(logs, `worker-${at}.log`), { flags: "a" });
    file?.write(`${JSON.stringify({ time: Date.now(), msg: `process ${child.pid} begins` })}\n`);
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        last = (last + text).slice(-2_000);
        file?.write(text);
      });
    }
    child.once("close", (code, signal) => {
      file?.end(`${JSON.stringify({ time: Date.now(), msg: `process ${child.pid} ended`, code, signal })}\n`);
      if (closing) return;
      if (signal !== "SIGKILL")
        ownEnds.push(`worker ${at} ended by itself (${code}): ${last.trim().split("\n").at(-1)}`);
      const timer = setTimeout(() => {
        timers.delete(timer);
        start(at);
      }, RESPAWN_MS);
      timers.add(timer);
    });
  };
  for (let at = 0; at < workers; at++) start(at);
  // However we end, nobody stays behind.
  const killAll = () => {
    for (const child of children) child?.kill("SIGKILL");
  };
  process.on("exit", killAll);
  return {
    ownEnds,
    signal: (worker, signal) => void children[worker]?.kill(signal),
    wake() {
      for (const child of children) child?.kill("SIGCONT");
    },
    async [Symbol.asyncDispose]() {
      closing = true;
      for (const timer of timers) clearTimeout(timer);
      const gone = children.flatMap((child) => (child && isAlive(child) ? [once(child, "close")] : []));
      killAll();
      await Promise.all(gone);
      process.off("exit", killAll);
    },
  };
}

const isAlive = (child: ChildProcess) => child.exitCode === null && child.signalCode === null;
