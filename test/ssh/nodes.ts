/**
 * A real sshd for each node of a stand-in: its own address, host key, authorized_keys and PATH, on which the node's
 * tools act on the stand-in's containers. What the workers need to know of them is `env`.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { toGuardScript } from "../../producers/cli/ssh-guard.ts";
import { quoteWord } from "../../shared/shell-quote.ts";
import type { Pve } from "../pve/index.ts";

export interface SshNodesOptions {
  /** The key may only run the fleet's verbs on these VMIDs. */
  guard?: { first: number; last: number };
  /** More lines of sshd_config. */
  config?: string[];
}

export interface SshNode {
  readonly name: string;
  readonly host: string;
  readonly port: number;
  /** SHA256:… of its host key. */
  readonly fingerprint: string;
  /** Its line of a known_hosts file. */
  readonly knownHost: string;
  /** Connections that are open now, by the process of each. */
  connections(): number[];
  /** Ends all connections without a word; sshd stays. */
  cut(): void;
  /** As if the machine lost power: sshd and all connections are gone. */
  stop(): Promise<void>;
  /** After stop. */
  start(): Promise<void>;
  /** Connections stay and nobody answers, until `resume`. */
  hang(): void;
  resume(): void;
}

export interface SshNodes extends AsyncDisposable {
  /** FLEET_SSH_… for a worker. */
  readonly env: Record<string, string>;
  /** The folder of it all: keys, configs. */
  readonly folder: string;
  node(name: string): SshNode;
}

const TOOLS = ["pct", "lxc-freeze", "lxc-unfreeze", "lxc-info"];

export async function startSshNodes(
  pve: Pick<Pve, "nodes" | "controlUrl">,
  options: SshNodesOptions = {},
): Promise<SshNodes> {
  await using stack = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "ssh-nodes-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const key = makeKey(join(folder, "user_key"));
  const nodes = new Map<string, SshNode>();
  for (const [index, name] of pve.nodes.entries()) {
    const host = `127.91.${process.pid % 256}.${index + 1}`;
    const setup = {
      name,
      host,
      folder: join(folder, name),
      controlUrl: pve.controlUrl,
      userKey: key.publicKey,
      options,
    };
    nodes.set(name, stack.use(await startNode(setup)));
  }
  const all = [...nodes.values()];
  const kept = stack.move();
  return {
    folder,
    env: {
      FLEET_SSH_KEY: key.file,
      FLEET_SSH_USER: userInfo().username,
      FLEET_SSH_HOSTS: all.map(({ name, host, port }) => `${name}=${host}:${port}`).join(),
      FLEET_SSH_HOST_KEYS: all.map(({ name, fingerprint }) => `${name}=${fingerprint}`).join(),
    },
    node(name) {
      const node = nodes.get(name);
      if (!node) throw new Error(`there is no node ${name}`);
      return node;
    },
    [Symbol.asyncDispose]: () => kept.disposeAsync(),
  };
}

export function makeKey(file: string, type = "ed25519", passphrase = "") {
  execFileSync("ssh-keygen", ["-q", "-t", type, "-N", passphrase, "-C", "test", "-f", file]);
  const publicKey = readFileSync(`${file}.pub`, "utf8").trim();
  const fingerprint = execFileSync("ssh-keygen", ["-lf", `${file}.pub`], { encoding: "utf8" }).split(" ")[1] ?? "";
  return { file, publicKey, fingerprint };
}

interface NodeSetup {
  name: string;
  host: string;
  folder: string;
  controlUrl: string;
  userKey: string;
  options: SshNodesOptions;
}

async function startNode(setup: NodeSetup): Promise<SshNode & AsyncDisposable> {
  const { name, host, folder } = setup;
  mkdirSync(folder);
  const port = await freePort(host);
  const hostKey = makeKey(join(folder, "host_key"));
  const config = join(folder, "sshd_config");
  const tools = writeTools(setup);
  const path = `${tools}:/usr/sbin:/usr/bin:/sbin:/bin`;
  writeFileSync(join(folder, "authorized_keys"), `${toKeyLine(setup, path)}\n`);
  const lines = [
    `ListenAddress ${host}:${port}`,
    `HostKey ${hostKey.file}`,
    `AuthorizedKeysFile ${join(folder, "authorized_keys")}`,
    "PidFile none",
    // The folder is below /tmp, where everybody may write.
    "StrictModes no",
    "PermitRootLogin prohibit-password",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "UsePAM no",
    // A home of its own: bash reads this machine's .bashrc where sshd starts it.
    `SetEnv PATH=${path} HOME=${folder}`,
    "LogLevel VERBOSE",
    ...(setup.options.config ?? []),
  ];
  writeFileSync(config, `${lines.join("\n")}\n`);
  let running = await startSshd(config);
  return {
    name,
    host,
    port,
    fingerprint: hostKey.fingerprint,
    knownHost: `[${host}]:${port} ${hostKey.publicKey}`,
    connections: () => childrenOf(running.pid),
    cut: () => {
      for (const one of childrenOf(running.pid)) sendSignal(one, "SIGKILL");
    },
    async stop() {
      await running[Symbol.asyncDispose]();
    },
    async start() {
      running = await startSshd(config);
    },
    hang: () => running.signal("SIGSTOP"),
    resume: () => running.signal("SIGCONT"),
    [Symbol.asyncDispose]: () => running[Symbol.asyncDispose](),
  };
}

/** Wrappers, since the tools must know their node; `cat` and `pgrep` for what is asked of the node's processes alone. */
function writeTools({ name, folder, controlUrl }: NodeSetup): string {
  const tools = join(folder, "tools");
  mkdirSync(tools);
  const run = ["/bin/bash", join(import.meta.dirname, "tool.sh"), new URL(controlUrl).port, name]
    .map(quoteWord)
    .join(" ");
  const write = (tool: string, lines: string[]) =>
    writeFileSync(join(tools, tool), `${["#!/bin/sh", ...lines].join("\n")}\n`, { mode: 0o755 });
  for (const tool of TOOLS) write(tool, [`exec ${run} ${tool} "$@"`]);
  write("cat", [`[ "\${1-}" = /proc/uptime ] && exec ${run} cat "$@"`, `exec /bin/cat "$@"`]);
  write("pgrep", [`[ "\${1-}" = -s ] && exec ${run} pgrep "$@"`, `exec /usr/bin/pgrep "$@"`]);
  // The guard's log: a file of the test's own.
  write("logger", [`printf '%s\\n' "$*" >>${quoteWord(join(folder, "log"))}`]);
  return tools;
}

function toKeyLine({ folder, userKey, options }: NodeSetup, path: string): string {
  if (!options.guard) return userKey;
  const guard = join(folder, "guard");
  const configs = join(folder, "configs");
  mkdirSync(configs);
  writeFileSync(guard, toGuardScript({ range: options.guard, publicKey: userKey, path, configs }), { mode: 0o755 });
  return `command="${guard}",restrict,pty ${userKey}`;
}

interface Sshd extends AsyncDisposable {
  readonly pid: number;
  signal(signal: NodeJS.Signals): void;
}

/** Kills sshd and its connections when this process ends, however it does: its stdin ends then. */
const GUARDED = `"$1" -D -e -f "$2" </dev/null & sshd=$!
echo $sshd
cat >/dev/null
pkill -KILL -P $sshd; kill -KILL $sshd`;

async function startSshd(config: string): Promise<Sshd> {
  const program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].find(existsSync);
  if (!program) throw new Error("sshd is missing; npm run setup installs it on Debian, else install openssh-server");
  if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true, mode: 0o755 }); // its privilege separation needs it
  const child = spawn("/bin/sh", ["-c", GUARDED, "sh", program, config], {
    stdio: ["pipe", "pipe", "pipe"],
    detached: true,
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
  });
  const [pidLine] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
  const pid = Number(pidLine);
  await listening(child);
  return {
    pid,
    signal: (signal) => {
      for (const one of [pid, ...childrenOf(pid)]) sendSignal(one, signal);
    },
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const ended = once(child, "exit");
      // Children of children too: with privilege separation a connection is two processes.
      for (const one of [pid, ...childrenOf(pid)]) sendSignal(one, "SIGKILL");
      child.stdin.end();
      await ended;
      child.stderr.destroy();
      child.stdout.destroy();
    },
  };
}

async function listening(child: ChildProcess): Promise<void> {
  const said: string[] = [];
  if (!child.stderr) throw new Error("unreachable");
  const lines = createInterface({ input: child.stderr });
  await new Promise<void>((resolve, reject) => {
    lines.on("line", (line) => {
      said.push(line);
      if (line.startsWith("Server listening on")) resolve();
    });
    lines.on("close", () => reject(new Error(`sshd did not start: ${said.join("; ")}`)));
  });
}

/** sshd's own processes below it; what they run for a user is left out. */
function childrenOf(pid: number): number[] {
  const parents = new Map<number, number>();
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
      const name = stat.slice(stat.indexOf("(") + 1, stat.lastIndexOf(")"));
      if (name.startsWith("sshd"))
        parents.set(Number(entry), Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]));
    } catch {
      // It ended meanwhile.
    }
  }
  const found: number[] = [];
  const below = (parent: number) => {
    for (const [child, its] of parents) {
      if (its !== parent) continue;
      found.push(child);
      below(child);
    }
  };
  below(pid);
  return found;
}

function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended meanwhile.
  }
}

async function freePort(host: string): Promise<number> {
  const server = createServer().listen(0, host);
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("unreachable");
  return address.port;
}
