/** Real Redis servers for tests and the demo: each private, durable (AOF), never evicting, gone when its owner is. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, readFileSync, statSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { addAbortSignal } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";

export interface RedisServer extends AsyncDisposable {
  /** For the test itself, which may do everything. */
  readonly url: string;
  /** For a user of `deploy/redis/users.conf`, which may do what its role takes. */
  urlFor(role: Role): string;
  /** Of the server process; changes with restart(), none while it is down. None for a container or a server that is not ours. */
  readonly pid?: number | undefined;
  /** Where the append-only file lies; none for a container or a server that is not ours. */
  readonly dataDir?: string;
  /** Sends the signal, and for one that ends the server waits until it has ended. */
  kill(signal: NodeJS.Signals): Promise<void>;
  /** Same address, same data; stops the server first, politely, when it still runs. */
  restart(): Promise<void>;
}

export interface RedisOptions {
  port?: number;
  /** "everysec" by default, as in production; "always" where a test counts on the last write. */
  appendfsync?: "always" | "everysec";
  /** Kept when the server goes; without it a private folder is made and removed. */
  dataDir?: string;
  /** Whether it has the users of `deploy/redis/users.conf`, which need Redis 7; it has by default. */
  users?: boolean;
  /** A container where a Docker engine answers within a second, else a process. */
  engine?: "process" | "container";
}

/** Users of `deploy/redis/users.conf`. */
export type Role = "worker" | "producer" | "ops" | "gate" | "viewer";

const IMAGE = "redis:8";
const PASSWORD = "test";
const READY_WITHIN_MS = 20_000;
const SIGNALS_THAT_END_NOTHING = new Set<NodeJS.Signals>(["SIGSTOP", "SIGCONT", "SIGUSR1", "SIGUSR2"]);

/** Throws when there is neither a Docker engine nor a server on PATH: a test without Redis must fail, not skip. */
export async function startRedis(options: RedisOptions = {}): Promise<RedisServer> {
  if (options.engine === "process") return startProcess(options);
  if (options.engine === "container") return startContainer(options);
  if (!(await dockerAnswers(1_000))) return startProcess(options);
  try {
    return await startContainer(options);
  } catch (cause) {
    // An engine without the image and without a way to it is as good as none, if there is a server to run instead.
    if (findServer() === undefined) throw cause;
    return startProcess(options);
  }
}

/** For the demo: REDIS_URL if set, else a server from PATH, else a container. `log` hears which one it became. */
export async function startEmbeddedRedis({ log }: { log: (line: string) => void }): Promise<RedisServer> {
  const url = process.env["REDIS_URL"];
  if (url) {
    log("Redis: the server of REDIS_URL");
    return foreignServer(url);
  }
  if (findServer() === undefined && (await dockerAnswers(5_000))) {
    log(`Redis: ${IMAGE} in a container`);
    return startContainer({ users: false });
  }
  const server = await startProcess({ users: false });
  log(`Redis: ${server.url}, data in ${server.dataDir} until the end`);
  return server;
}

/** As words of a command line: that way they are there again after a restart. Each test has a prefix of its own. */
function usersInWords(): string[] {
  const file = readFileSync(new URL("../deploy/redis/users.conf", import.meta.url), "utf8");
  const users = file.split("\n").filter((line) => line.startsWith("user "));
  return users.flatMap((line) => `--${line}`.replaceAll("{fleet}", "{*}").replace(/>\w+/, `>${PASSWORD}`).split(" "));
}

const urlAs = (url: string, role: Role) => url.replace("redis://", `redis://fleet-${role}:${PASSWORD}@`);

function foreignServer(url: string): RedisServer {
  const refuse = () => Promise.reject(new Error("the server of REDIS_URL is not ours to stop"));
  return { url, urlFor: () => url, kill: refuse, restart: refuse, [Symbol.asyncDispose]: () => Promise.resolve() };
}

// ---- a process ---------------------------------------------------------------------------------------------------

async function startProcess(options: RedisOptions): Promise<RedisServer> {
  const program = findServer();
  if (program === undefined) {
    throw new Error(
      "no Redis server: neither redis-server nor valkey-server is on PATH and no Docker engine answers. " +
        "`npm run setup` installs one on Debian as root and says elsewhere what to install.",
    );
  }
  const dataDir = options.dataDir ?? (await mkdtemp(join(tmpdir(), "fleet-redis-")));
  const server = new RedisProcess(program, {
    dataDir,
    appendfsync: options.appendfsync ?? "everysec",
    users: options.users === false ? [] : usersInWords(),
    keepsData: options.dataDir !== undefined,
  });
  try {
    await server.startOn(options.port);
    return server;
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

interface ProcessPlan {
  dataDir: string;
  appendfsync: "always" | "everysec";
  users: readonly string[];
  keepsData: boolean;
}

class RedisProcess implements RedisServer {
  readonly #program: string;
  readonly #plan: ProcessPlan;
  readonly #guard: Guard;
  #child: ChildProcess | undefined;
  #port = 0;

  constructor(program: string, plan: ProcessPlan) {
    this.#program = program;
    this.#plan = plan;
    this.#guard = new Guard(plan.keepsData ? undefined : plan.dataDir);
  }

  get url(): string {
    return `redis://127.0.0.1:${this.#port}`;
  }

  urlFor(role: Role): string {
    return urlAs(this.url, role);
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get dataDir(): string {
    return this.#plan.dataDir;
  }

  /** Without a wish, a free port; another process may take it before Redis does, so that is tried again. */
  async startOn(port: number | undefined): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      this.#port = port ?? (await freePort());
      try {
        return await this.#start();
      } catch (error) {
        const taken = error instanceof Error && error.message.includes("Address already in use");
        if (port !== undefined || !taken || attempt === 5) throw error;
      }
    }
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    const ended = once(child, "exit");
    child.kill(signal);
    if (SIGNALS_THAT_END_NOTHING.has(signal)) return;
    await ended;
    this.#child = undefined;
    this.#guard.watch(undefined);
  }

  async restart(): Promise<void> {
    if (isRunning(this.#child)) await this.kill("SIGTERM");
    await this.#start();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // SIGKILL: it works on a stopped server too, and the append-only file needs no farewell.
    if (isRunning(this.#child)) await this.kill("SIGKILL");
    await this.#guard.close();
  }

  async #start(): Promise<void> {
    const { dataDir, appendfsync, users } = this.#plan;
    const settings = {
      bind: "127.0.0.1",
      port: String(this.#port),
      dir: dataDir,
      appendonly: "yes",
      appendfsync,
      save: "",
      "maxmemory-policy": "noeviction",
    };
    const words = Object.entries(settings)
      .flatMap(([name, value]) => [`--${name}`, value])
      .concat(users);
    // A session of its own: Ctrl-C in a terminal must not take Redis from under those who still tidy up.
    const child = spawn(this.#program, words, { detached: true, stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    const collect = (chunk: Buffer) => {
      output = (output + chunk.toString()).slice(-4_000);
    };
    child.stdout.on("data", collect);
    child.stderr.on("data", collect);
    const ended = new AbortController();
    child.once("error", (error) => ended.abort(error));
    child.once("close", () => ended.abort(new Error(`${this.#program} ended at once:\n${output.trim()}`)));
    this.#child = child;
    this.#guard.watch(child.pid);
    await waitUntilReady({ host: "127.0.0.1", port: this.#port, pid: child.pid }, ended.signal);
  }
}

function isRunning(child: ChildProcess | undefined): boolean {
  return child?.pid !== undefined && child.exitCode === null && child.signalCode === null;
}

/**
 * A small shell that outlives us, in a session of its own: its input ends when we do, however we die (SIGKILL too),
 * and then it kills the server it was last told of and removes the folder.
 */
class Guard {
  readonly #shell: ChildProcess;

  constructor(folder: string | undefined) {
    const script = `while read -r pid; do last=$pid; done
      if [ -n "$last" ]; then kill -9 "$last" 2>/dev/null; fi
      if [ -n "$1" ]; then rm -rf "$1" || { sleep 0.2; rm -rf "$1"; }; fi`;
    this.#shell = spawn("/bin/sh", ["-c", script, "guard", folder ?? ""], {
      detached: true,
      stdio: ["pipe", "ignore", "ignore"],
    });
  }

  watch(pid: number | undefined): void {
    this.#shell.stdin?.write(`${pid ?? ""}\n`);
  }

  async close(): Promise<void> {
    if (!isRunning(this.#shell)) return;
    const ended = once(this.#shell, "exit");
    this.#shell.stdin?.end();
    await ended;
  }
}

export function findServer(): string | undefined {
  const folders = (process.env["PATH"] ?? "").split(delimiter).filter(Boolean);
  return ["redis-server", "valkey-server"].flatMap((name) => folders.map((at) => join(at, name))).find(isProgram);
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("the system gave no port");
  return address.port;
}

// ---- a container -------------------------------------------------------------------------------------------------

async function startContainer(options: RedisOptions): Promise<RedisServer> {
  // Loaded only here: half a second that most runs need not pay.
  const { RedisContainer } = await import("@testcontainers/redis");
  const { getContainerRuntimeClient } = await import("testcontainers");
  // A fixed host port, since Docker gives a new one at each restart otherwise.
  const port = options.port ?? (await freePort());
  const container = new RedisContainer(IMAGE)
    .withExposedPorts({ container: 6_379, host: port })
    .withCommand([
      ...["redis-server", "--appendonly", "yes", "--appendfsync", options.appendfsync ?? "everysec"],
      ...["--save", "", "--maxmemory-policy", "noeviction", ...(options.users === false ? [] : usersInWords())],
    ]);
  if (options.dataDir !== undefined) {
    container.withBindMounts([{ source: options.dataDir, target: "/data", mode: "rw" }]);
  }
  const started = await container.start();
  const docker = (await getContainerRuntimeClient()).container.getById(started.getId());
  const host = started.getHost();
  const ready = () => waitUntilReady({ host, port }, new AbortController().signal);
  const isUp = async () => (await docker.inspect()).State.Running;
  await ready();
  return {
    url: `redis://${host}:${port}`,
    urlFor: (role) => urlAs(`redis://${host}:${port}`, role),
    async kill(signal) {
      await docker.kill({ signal });
      if (!SIGNALS_THAT_END_NOTHING.has(signal)) await docker.wait(); // at once when it has ended already
    },
    async restart() {
      if (await isUp()) await docker.stop();
      await docker.start();
      await ready();
    },
    [Symbol.asyncDispose]: async () => {
      await started.stop({ remove: true, removeVolumes: true, timeout: 0 });
    },
  };
}

/** Whether a Docker engine answers in time. Asks the client, since it knows contexts that the socket's path does not. */
export async function dockerAnswers(withinMs: number): Promise<boolean> {
  const client = spawn("docker", ["version", "--format", "{{.Server.Version}}"], { stdio: "ignore" });
  const limit = setTimeout(() => client.kill("SIGKILL"), withinMs);
  try {
    const [code] = await once(client, "exit");
    return code === 0;
  } catch {
    return false; // no such program
  } finally {
    clearTimeout(limit);
  }
}

// ---- readiness ---------------------------------------------------------------------------------------------------

interface Address {
  host: string;
  port: number;
  /** Whose answer counts: another server may sit on the port. */
  pid?: number | undefined;
}

/** Resolves once the server answers a PING (that is: has loaded its data), rejects when `ended` aborts or time is up. */
async function waitUntilReady(address: Address, ended: AbortSignal): Promise<void> {
  const late = AbortSignal.timeout(READY_WITHIN_MS);
  const signal = AbortSignal.any([ended, late]);
  while (!(await answers(address, signal))) {
    if (late.aborted)
      throw new Error(`Redis at ${address.host}:${address.port} gave no answer in ${READY_WITHIN_MS} ms`);
    signal.throwIfAborted();
    await delay(10, undefined, { signal }).catch(() => undefined); // the loop looks at the signal itself
  }
}

async function answers({ host, port, pid }: Address, signal: AbortSignal): Promise<boolean> {
  const socket = addAbortSignal(AbortSignal.any([signal, AbortSignal.timeout(1_000)]), connect({ host, port }));
  let reply = "";
  try {
    await once(socket, "connect");
    socket.write("INFO server\r\nPING\r\n");
    for await (const chunk of socket) {
      reply += String(chunk);
      // The second reply is the last: "+PONG", or "-LOADING ..." while the append-only file is read.
      if (/\r\n\+PONG\r\n$/.test(reply)) return pid === undefined || reply.includes(`process_id:${pid}\r\n`);
      if (/\r\n-[^\r\n]*\r\n$/.test(reply)) return false;
    }
    return false;
  } catch {
    return false; // not listening yet, or mute
  } finally {
    socket.destroy();
  }
}
