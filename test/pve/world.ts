import { setMaxListeners } from "node:events";
import type { Identity } from "./access.ts";
import { between, hex, now, type Random, seeded } from "./clock.ts";
import { Container, DEFAULT_TRAITS, type Seen } from "./container.ts";
import type { PveNode } from "./node.ts";
import { type GuestTraits, type PveVersion, TIMINGS, type Timings } from "./options.ts";
import { missingConfig, refuse } from "./refusal.ts";
import type { Storage, Volume } from "./storage.ts";
import { type Doomed, jittered, Task } from "./task.ts";
import type { TaskEntry } from "./views.ts";

/** A task fault as armed: taken when a task starts. */
export type Doom = (task: Task) => Doomed | undefined;

/** The whole cluster: what pmxcfs, the daemons and the storages know. */
export class World {
  readonly version: PveVersion;
  readonly timings: Timings;
  readonly random: Random;
  readonly nodes = new Map<string, PveNode>();
  readonly storages = new Map<string, Storage>();
  readonly containers = new Map<number, Container>();
  /** QEMU machines, which only take up VMIDs and memory here: their nodes. */
  readonly machines = new Map<number, string>();
  readonly pools = new Map<string, { comment: string | undefined; members: Set<number> }>();
  readonly tasks = new Map<string, Task>();
  readonly tokens = new Map<string, Identity & { secret: string }>();
  readonly taskListeners = new Set<(task: TaskEntry) => void>();
  readonly bootedAt = now();
  readonly clusterFirewall = new Map<string, string>();
  quorum = true;
  fingerprint = "";
  doom: Doom = () => undefined;
  readonly #seen = new Map<number, Seen[]>();
  readonly #closing = new AbortController();
  #lastPid = 1000;

  constructor(options: { version: PveVersion; timings: Partial<Timings>; seed: number }) {
    this.version = options.version;
    this.timings = { ...TIMINGS, ...options.timings };
    this.random = seeded(options.seed);
    setMaxListeners(0, this.#closing.signal);
  }

  /** Aborts when the stand-in closes. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  close(): void {
    this.#closing.abort(new Error("the stand-in closes"));
  }

  /** A task's share of work in ms: scaled and with jitter. */
  takes(ms: number): number {
    return jittered(ms * this.timings.timeScale, this.timings.jitter, this.random);
  }

  latency(low: number, high: number): number {
    return between(this.random, low, high) * this.timings.apiScale;
  }

  nextPid(): number {
    this.#lastPid += 1 + Math.floor(this.random() * 7);
    return this.#lastPid;
  }

  newUid(): string {
    return hex(this.random, 16);
  }

  newMac(): string {
    const pairs = (hex(this.random, 6).toUpperCase().match(/../g) ?? []).join(":");
    return `BC:24:11:${pairs}`;
  }

  node(name: string): PveNode {
    const node = this.nodes.get(name);
    if (node === undefined) throw refuse(`no such cluster node '${name}'`);
    return node;
  }

  /** The container as its own node knows it; others have no such file. */
  container(node: string, vmid: number): Container {
    const container = this.containers.get(vmid);
    if (container === undefined || container.node !== node) throw missingConfig(node, vmid);
    return container;
  }

  checkQuorum(): void {
    if (!this.quorum) throw refuse("cluster not ready - no quorum?");
  }

  checkUnused(vmid: number): void {
    const taken = this.containers.get(vmid);
    if (taken !== undefined) throw refuse(`CT ${vmid} already exists on node '${taken.node}'`);
    const machine = this.machines.get(vmid);
    if (machine !== undefined) throw refuse(`VM ${vmid} already exists on node '${machine}'`);
  }

  /** The atomic claim of a VMID. */
  claim(vmid: number, node: string, traits: Partial<GuestTraits> = {}): Container {
    this.checkUnused(vmid);
    const container = new Container(vmid, node, { uid: this.newUid(), traits: { ...DEFAULT_TRAITS, ...traits } });
    this.containers.set(vmid, container);
    this.node(node).containers.set(vmid, container);
    return container;
  }

  move(container: Container, node: string): void {
    this.nodes.get(container.node)?.containers.delete(container.vmid);
    container.node = node;
    this.node(node).containers.set(container.vmid, container);
  }

  /** Config, pool membership and volumes go; the statistics of the past stay, as in rrdcached. */
  forget(container: Container): void {
    if (this.containers.get(container.vmid) !== container) return;
    this.containers.delete(container.vmid);
    this.nodes.get(container.node)?.containers.delete(container.vmid);
    for (const pool of this.pools.values()) pool.members.delete(container.vmid);
  }

  freeVolumes(container: Container): void {
    for (const volume of this.volumesOf(container)) volume.storage.remove(volume.volid);
  }

  volumesOf(container: Container): Volume[] {
    const found: Volume[] = [];
    for (const [key, value] of container.config.values) {
      if (key !== "rootfs" && !/^(mp|unused)\d+$/.test(key)) continue;
      const volume = this.volume(value.split(",")[0] ?? "");
      if (volume !== undefined) found.push(volume);
    }
    return found;
  }

  volume(volid: string): Volume | undefined {
    return this.#storagesNamed(volid.split(":")[0] ?? "")
      .map((storage) => storage.volumes.get(volid))
      .find((volume) => volume !== undefined);
  }

  /** Local storages have the same name on every node and are different stores. */
  #storagesNamed(name: string): Storage[] {
    const found = new Set<Storage>();
    for (const node of this.nodes.values()) {
      const storage = node.storages.get(name);
      if (storage !== undefined) found.add(storage);
    }
    return [...found];
  }

  poolOf(vmid: number): string | undefined {
    for (const [name, pool] of this.pools) if (pool.members.has(vmid)) return name;
    return undefined;
  }

  /** What the statistics daemon would see now; cluster/resources shows it `resourcesLag` later. */
  see(container: Container): void {
    const history = this.#seen.get(container.vmid) ?? [];
    history.push({
      at: now(),
      name: container.name,
      status: container.running ? "running" : "stopped",
      template: container.template,
      startedAt: container.guest?.startedAt,
    });
    this.#seen.set(container.vmid, history);
  }

  /** What was there before the stand-in started has been seen long ago. */
  backdate(vmid: number): void {
    for (const entry of this.#seen.get(vmid) ?? []) entry.at = 0;
  }

  seen(vmid: number): Seen | undefined {
    const history = this.#seen.get(vmid);
    if (history === undefined) return undefined;
    const until = now() - this.timings.resourcesLag;
    let index = history.length - 1;
    while (index >= 0 && (history[index]?.at ?? 0) > until) index -= 1;
    if (index > 0) history.splice(0, index);
    return index < 0 ? undefined : history[0];
  }

  /** Forks a worker: the reply carries its UPID, the body runs on. */
  fork(
    facts: { type: string; id: number | string; node: PveNode; by: Identity; arrivedAt: number; target?: number },
    body: (task: Task) => Promise<void>,
  ): Task {
    const task = new Task(
      {
        type: facts.type,
        id: String(facts.id),
        node: facts.node.name,
        pid: this.nextPid(),
        pstart: Math.floor((now() - this.bootedAt) / 10) + 200_000,
        by: { user: facts.by.user, tokenid: facts.by.tokenid },
        arrivedAt: facts.arrivedAt,
      },
      this.closing,
    );
    task.target = facts.target;
    task.doomed = this.doom(task);
    this.tasks.set(task.upid, task);
    facts.node.running.add(task);
    void task
      .run(() => body(task))
      .then(() => {
        facts.node.running.delete(task);
        facts.node.ended.push(task);
        for (const listener of [...this.taskListeners]) listener(task.toEntry());
      });
    return task;
  }

  runningMemoryMib(node: PveNode): number {
    let total = 0;
    for (const container of node.containers.values()) if (container.running) total += usedMemoryMib(container);
    return total;
  }
}

/** A small guest uses about 60 MiB of what it may have. */
export function usedMemoryMib(container: Container): number {
  return container.running ? Math.min(60, Number(container.config.get("memory") ?? 512)) : 0;
}
