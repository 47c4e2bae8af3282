import { now } from "./clock.ts";
import type { Container } from "./container.ts";
import type { NodeState } from "./faults.ts";
import { FileLock } from "./file-lock.ts";
import { NodeLoad } from "./node-load.ts";
import type { NodeSpec } from "./options.ts";
import type { Storage } from "./storage.ts";
import type { Task } from "./task.ts";

/** pvedaemon has three synchronous workers: a fourth blocking call waits for one of them. */
const DAEMON_WORKERS = 3;

const OS_TEMPLATES = new Map([
  ["local:vztmpl/alpine-3.20-busybox_1_amd64.tar.gz", 1_037_481],
  ["local:vztmpl/debian-12-minbase_12.1_amd64.tar.zst", 60_220_237],
]);

export class PveNode {
  readonly name: string;
  readonly index: number;
  readonly cores: number;
  readonly memoryMib: number;
  readonly load: NodeLoad;
  readonly storages: ReadonlyMap<string, Storage>;
  readonly containers = new Map<number, Container>();
  /** In the order of their beginning. */
  readonly running = new Set<Task>();
  readonly dumpLock = new FileLock("/var/run/vzdump.lock");
  /** In the order of their end. */
  readonly ended: Task[] = [];
  /** What `ostemplate` may name. */
  readonly osTemplates: ReadonlyMap<string, number> = OS_TEMPLATES;
  state: NodeState;
  /** Epoch ms: an hour before the stand-in's start, or its last reboot. */
  bootedAt = now() - 3_600_000;
  dns: Record<string, string>;
  /** How far its clock is wrong. */
  aheadSec = 0;
  #free = DAEMON_WORKERS;
  readonly #waiting: (() => void)[] = [];

  constructor(
    spec: NodeSpec,
    { index, parallel, storages }: { index: number; parallel: number; storages: Map<string, Storage> },
  ) {
    this.name = spec.name;
    this.index = index;
    this.cores = spec.cores ?? 16;
    this.memoryMib = spec.memoryMib ?? 65_536;
    this.load = new NodeLoad(spec.parallel ?? parallel);
    this.storages = storages;
    this.state = spec.online === false ? "unreachable" : "online";
    this.dns = { search: spec.dnsSearch ?? "lan", dns1: "10.10.10.1" };
  }

  /** Requests that hang in the daemon, to be run when it wakes up. */
  readonly #asleep: (() => void)[] = [];

  setState(state: NodeState): void {
    this.state = state;
    if (state !== "hung") for (const wake of this.#asleep.splice(0)) wake();
  }

  /** Resolves when a hung daemon goes on. */
  async awake(): Promise<void> {
    if (this.state === "hung") await new Promise<void>((resolve) => this.#asleep.push(resolve));
  }

  get address(): string {
    return `10.10.10.${this.index + 1}`;
  }

  /** Runs `body` in one of the daemon's workers. */
  async inDaemon<T>(body: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free -= 1;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await body();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free += 1;
      else next();
    }
  }
}
