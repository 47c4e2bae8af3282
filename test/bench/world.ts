/**
 * What a bench runs on: Redis, the stand-in for PVE with its default timings, and the workers, each in processes of
 * their own, so that none of them waits for another's event loop; the producer is this process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { createFleet, type Fleet } from "../../producers/index.ts";
import type { LogEntry, TaskEntry } from "../pve/views.ts";
import { startRedis } from "../redis.ts";
import { startSshNodes } from "../ssh/nodes.ts";

export const TEMPLATE = "cmux-base";
export const NODES = ["pve1", "pve2", "pve3"] as const;
export const NODE_SLOTS = 4;
export const REPLICAS = 2;

/** The stand-in as its own process tells it. */
export interface Cluster extends AsyncDisposable {
  readonly url: string;
  readonly token: string;
  readonly env: Readonly<Record<string, string>>;
  /** Its own record of every request and task since it started. */
  record(): Promise<{ requests: LogEntry[]; tasks: TaskEntry[] }>;
}

export interface World extends AsyncDisposable {
  readonly cluster: Cluster;
  readonly fleet: Fleet;
  readonly redisUrl: string;
  readonly prefix: string;
  readonly secretKey: string;
  readonly workerPids: readonly number[];
  /** What a worker has written to its log. */
  workerLog(at: number): Promise<string>;
  /** Where the gate listens. */
  readonly gateUrl: string;
}

export interface WorldOptions {
  workers: number;
  /** Nodes of the cluster (3). */
  nodes?: number;
  /** An sshd for each of the first three nodes, which the workers know. */
  ssh?: boolean;
  /** What runs as a worker (`workers/main.ts`). */
  program?: URL;
  /** More variables of the workers. */
  env?: Record<string, string>;
  /** With these variables another process has the role gate, as in `deploy/`. */
  gate?: Record<string, string>;
}

export async function startWorld(options: WorldOptions): Promise<World> {
  const { workers, nodes = NODES.length, ssh = false, program = MAIN, env: more = {}, gate } = options;
  await using stack = new AsyncDisposableStack();
  const redis = stack.use(await startRedis({ engine: "process" }));
  const cluster = stack.use(await startCluster(nodes));
  const controlUrl = cluster.env["PVE_CONTROL_URL"] ?? "";
  const sshNodes = ssh ? stack.use(await startSshNodes({ nodes: [...NODES], controlUrl })) : undefined;
  const prefix = `{bench-${randomBytes(4).toString("hex")}}`;
  const secretKey = randomBytes(32).toString("hex");
  const env = {
    ...cluster.env,
    REDIS_URL: redis.url,
    FLEET_PREFIX: prefix,
    FLEET_SECRET_KEY: secretKey,
    FLEET_ROLES: "worker",
    FLEET_NODE_SLOTS: String(NODE_SLOTS),
    ...sshNodes?.env,
    ...more,
  };
  const started: WorkerProcess[] = [];
  for (let at = 0; at < workers; at++) started.push(stack.use(await startWorker(env, program)));
  const gateEnv = { ...env, ...gate, FLEET_ROLES: "gate", GATE_PORT: "0" };
  const gateProcess = gate && stack.use(await startWorker(gateEnv, program, GATE_IS_UP));
  const gateUrl = GATE_IS_UP.exec((await gateProcess?.log()) ?? "")?.[1] ?? "";
  const fleet = stack.use(createFleet({ redis: redis.url, prefix, secretKey }));
  const resources = stack.move();
  return {
    cluster,
    fleet,
    redisUrl: redis.url,
    prefix,
    secretKey,
    workerPids: started.map(({ pid }) => pid),
    gateUrl,
    workerLog: async (at) => (await started[at]?.log()) ?? "",
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

interface WorkerProcess extends AsyncDisposable {
  pid: number;
  log(): Promise<string>;
}

/** As `npm run worker` and the image have them. */
const WORKER_FLAGS = ["--max-semi-space-size=16", "--max-old-space-size=768"];
const MAIN = new URL("../../workers/main.ts", import.meta.url);

const IS_UP = /"msg":"workers started"/;
const GATE_IS_UP = /"url":"(http:[^"]+)"[^\n]*"msg":"gate is up"/;

/** Its log goes to a file, as to a collector's: read here, it would be work of the producer's. */
async function startWorker(env: Record<string, string>, program: URL, isUp = IS_UP): Promise<WorkerProcess> {
  await using stack = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "fleet-bench-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, "worker.log");
  await using log = await open(file, "a");
  const child = spawn(process.execPath, [...WORKER_FLAGS, fileURLToPath(program)], {
    env: { PATH: process.env["PATH"] ?? "", NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"], ...env },
    stdio: ["ignore", log.fd, log.fd],
  });
  // Also where a signal ends the bench at once.
  const kill = () => void child.kill("SIGKILL");
  process.on("exit", kill);
  stack.defer(async () => {
    process.off("exit", kill);
    kill();
    if (isAlive(child)) await once(child, "exit");
  });
  const patience = AbortSignal.timeout(20_000);
  const readLog = () => readFile(file, "utf8");
  while (!isUp.test(await readLog())) {
    if (!isAlive(child) || patience.aborted) throw new Error(`the worker is not up:\n${await readLog()}`);
    await delay(50);
  }
  const resources = stack.move();
  return { pid: child.pid ?? 0, log: readLog, [Symbol.asyncDispose]: () => resources.disposeAsync() };
}

async function startCluster(nodes: number): Promise<Cluster> {
  await using stack = new AsyncDisposableStack();
  const args = ["--nodes", String(nodes), "--port", "0", "--json"];
  const { told: env } = stack.use(await startProgram(new URL("../pve/main.ts", import.meta.url), args));
  const controlUrl = env["PVE_CONTROL_URL"] ?? "";
  const ask = async (path: string, body?: object): Promise<unknown> => {
    const asked = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const reply = await fetch(`${controlUrl}${path}`, asked);
    if (!reply.ok) throw new Error(`stand-in, ${path}: ${reply.status} ${await reply.text()}`);
    return reply.json();
  };
  // Each node has one of its own already.
  for (const [at, node] of NODES.entries())
    for (let more = 1; more < REPLICAS; more++)
      await ask("/template", { name: TEMPLATE, node, vmid: 9_100 + 10 * at + more });
  const resources = stack.move();
  return {
    url: env["PVE_API_URL"] ?? "",
    token: env["PVE_API_TOKEN"] ?? "",
    env,
    record: async () => ({
      requests: (await ask("/log")) as LogEntry[], // our own stand-in's view
      tasks: (await ask("/tasks")) as TaskEntry[], // as above
    }),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

/** How long a program has to tidy up. */
const STOP_WITHIN_MS = 10_000;

export interface Program extends AsyncDisposable {
  /** What it printed first: one JSON object. */
  readonly told: Record<string, string>;
}

/** A process of its own, once it has said where it is. */
export async function startProgram(file: URL, args: readonly string[]): Promise<Program> {
  const child = spawn(process.execPath, [fileURLToPath(file), ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const kill = () => void child.kill("SIGKILL");
  process.on("exit", kill);
  const stop = async () => {
    process.off("exit", kill);
    if (!isAlive(child)) return;
    // Politely: the stand-in removes its guests and their folders.
    child.kill("SIGTERM");
    const impatience = setTimeout(kill, STOP_WITHIN_MS); // with work under way it may not come to an end
    await once(child, "close");
    clearTimeout(impatience);
  };
  try {
    return { told: await firstLine(child), [Symbol.asyncDispose]: stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function firstLine(child: ChildProcess): Promise<Record<string, string>> {
  if (child.stdout === null) throw new Error("no output to read");
  const lines = createInterface(child.stdout);
  const gone = once(child, "close").then(() => Promise.reject(new Error("a process of the bench ended at once")));
  gone.catch(() => {}); // later it is its usual end
  const [line] = await Promise.race([once(lines, "line"), gone]);
  return JSON.parse(String(line)) as Record<string, string>; // our own programs
}

const isAlive = (child: ChildProcess) => child.exitCode === null && child.signalCode === null;
