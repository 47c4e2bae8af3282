import { now } from "./clock.ts";
import type { FaultHandle, Faults, NodeState, RequestFault, TaskFault } from "./faults.ts";
import type { Guests } from "./guest/guests.ts";
import { crashGuest, occupyVmid, vanishContainer } from "./mischief.ts";
import type { Doomed, Task } from "./task.ts";
import type { World } from "./world.ts";

interface Armed<Kind> {
  readonly fault: Kind;
  readonly handle: FaultHandle;
  left: number;
  hits: number;
  readonly released: PromiseWithResolvers<void>;
}

/** The faults in force. Requests and tasks ask it what shall go wrong with them. */
export class FaultBox implements Faults {
  readonly #world: World;
  readonly #guests: Guests;
  readonly #requests = new Map<string, Armed<RequestFault>>();
  readonly #tasks = new Map<string, Armed<TaskFault>>();
  #lastId = 0;
  /** Called when a fault hits, with what log() shall say. */
  onHit: (what: string) => void = () => {};

  constructor(world: World, guests: Guests) {
    this.#world = world;
    this.#guests = guests;
    world.doom = (task) => this.#doomFor(task);
  }

  request(fault: RequestFault): FaultHandle {
    return this.#arm(this.#requests, fault);
  }

  task(fault: TaskFault): FaultHandle {
    return this.#arm(this.#tasks, fault);
  }

  #arm<Kind extends { times?: number }>(into: Map<string, Armed<Kind>>, fault: Kind): FaultHandle {
    this.#lastId += 1;
    const id = `f${this.#lastId}`;
    const released = Promise.withResolvers<void>();
    const armed: Armed<Kind> = {
      fault,
      left: fault.times ?? 1,
      hits: 0,
      released,
      handle: {
        id,
        get hits() {
          return armed.hits;
        },
        release: () => {
          into.delete(id);
          released.resolve();
        },
      },
    };
    into.set(id, armed);
    return armed.handle;
  }

  /** By id, for the control API. */
  release(id: string): boolean {
    const armed = this.#requests.get(id) ?? this.#tasks.get(id);
    armed?.handle.release();
    return armed !== undefined;
  }

  /** The faults for one request, delays first, then at most one other; they count as hit. */
  take(method: string, path: string): { fault: RequestFault; released: Promise<void> }[] {
    const taken: { fault: RequestFault; released: Promise<void> }[] = [];
    for (const armed of this.#requests.values()) {
      const { fault } = armed;
      if (armed.left <= 0 || (fault.method !== undefined && fault.method !== method)) continue;
      if (fault.path !== undefined && !new RegExp(fault.path).test(path)) continue;
      armed.left -= 1;
      armed.hits += 1;
      taken.push({ fault, released: armed.released.promise });
      if (fault.kind !== "delay") break;
    }
    return taken;
  }

  #doomFor(task: Task): Doomed | undefined {
    for (const armed of this.#tasks.values()) {
      const { fault } = armed;
      if (armed.left <= 0 || (fault.type !== undefined && fault.type !== task.type)) continue;
      if (fault.vmid !== undefined && String(fault.vmid) !== task.id && fault.vmid !== task.target) continue;
      armed.left -= 1;
      armed.hits += 1;
      if (fault.hold) task.held = armed.released.promise;
      for (const line of fault.warnings ?? []) task.warn(line);
      if (fault.text === undefined) continue;
      this.onHit(`task ${task.upid} will fail: ${fault.text}`);
      return { text: fault.text, leaveLocks: fault.leaveLocks ?? false };
    }
    return undefined;
  }

  node(name: string, state: NodeState): void {
    const node = this.#world.node(name);
    node.setState(state);
    this.onHit(`node ${name} ${state}`);
  }

  async shutDown(name: string): Promise<void> {
    const node = this.#world.node(name);
    const by = { user: "root@pam", tokenid: "", privileges: "all" as const, disabled: false, expired: false };
    const task = this.#world.fork({ type: "stopall", id: "", node, by, arrivedAt: now() }, async () => {
      for (const container of node.containers.values()) if (container.running) await this.#guests.stop(container);
    });
    await task.ended;
    this.onHit(`node ${name} shut down`);
  }

  reboot(name: string, agoMs = 0): void {
    const node = this.#world.node(name);
    for (const container of node.containers.values()) if (container.running) crashGuest(this.#guests, container);
    node.bootedAt = now() - agoMs;
    this.onHit(`node ${name} rebooted`);
  }

  expel(name: string): void {
    if (this.#world.node(name).containers.size > 0) throw new Error(`node ${name} has guests`);
    this.#world.nodes.delete(name);
    this.onHit(`node ${name} left the cluster`);
  }

  quorum(present: boolean): void {
    this.#world.quorum = present;
    this.onHit(present ? "quorum is back" : "quorum lost");
  }

  clock(node: string, aheadSec: number): void {
    this.#world.node(node).aheadSec = aheadSec;
    this.onHit(`clock of ${node} is ${aheadSec} s ahead`);
  }

  hookFailure(times = 1): void {
    this.#guests.hookFailures = times;
    this.onHit(`token hook fails ${times} times`);
  }

  #container(vmid: number) {
    const container = this.#world.containers.get(vmid);
    if (container === undefined) throw new Error(`there is no container ${vmid}`);
    return container;
  }

  lock(vmid: number, lock: string | null): void {
    this.#container(vmid).config.set("lock", lock ?? undefined);
    this.onHit(lock === null ? `CT ${vmid} unlocked` : `CT ${vmid} locked (${lock})`);
  }

  freeze(vmid: number): void {
    this.#guests.freeze(this.#container(vmid));
    this.onHit(`CT ${vmid} frozen`);
  }

  unfreeze(vmid: number): void {
    this.#guests.unfreeze(this.#container(vmid));
    this.onHit(`CT ${vmid} unfrozen`);
  }

  killTask(upid: string): void {
    const task = this.#world.tasks.get(upid);
    if (task === undefined) throw new Error(`there is no task ${upid}`);
    task.stop("kill");
    this.onHit(`task ${upid} killed`);
  }

  vanish(vmid: number): void {
    if (!this.#world.machines.delete(vmid)) vanishContainer(this.#world, this.#guests, this.#container(vmid));
    this.onHit(`guest ${vmid} vanished`);
  }

  occupy(vmid: number, node?: string, kind?: "lxc" | "qemu"): void {
    occupyVmid(this.#world, vmid, node, kind);
    this.onHit(`${kind === "qemu" ? "VM" : "CT"} ${vmid} made by a human`);
  }

  edit(vmid: number, change: Record<string, string | null>): void {
    const container = this.#container(vmid);
    for (const [key, value] of Object.entries(change)) container.config.set(key, value ?? undefined);
    this.#world.see(container);
    this.onHit(`CT ${vmid} edited by hand: ${Object.keys(change).join(", ")}`);
  }

  takeAddresses(vmid: number, addresses: readonly string[]): void {
    this.#container(vmid).taken = addresses;
    this.onHit(`CT ${vmid} took ${addresses.join(", ")}`);
  }

  ranFor(vmid: number, seconds: number): void {
    const { guest } = this.#container(vmid);
    if (guest === undefined) throw new Error(`CT ${vmid} does not run`);
    guest.startedAt = now() - seconds * 1_000;
  }

  crash(vmid: number): void {
    crashGuest(this.#guests, this.#container(vmid));
    this.onHit(`CT ${vmid} crashed`);
  }

  move(vmid: number, node: string): void {
    this.#world.move(this.#container(vmid), node);
    this.onHit(`CT ${vmid} moved to ${node}`);
  }

  clear(): void {
    for (const armed of [...this.#requests.values(), ...this.#tasks.values()]) armed.handle.release();
    for (const node of this.#world.nodes.values()) {
      node.setState("online");
      node.aheadSec = 0;
    }
    this.#world.quorum = true;
    this.#guests.hookFailures = 0;
    this.onHit("all faults cleared");
  }
}
