/** A node whose tasks end at known times, on a clock that only moves when told. */
import { FleetError } from "../../../shared/errors.ts";
import type { TasksApi } from "../../../workers/pve/api.ts";
import type { WatcherClock } from "../../../workers/pve/task-watcher.ts";
import { parseUpid, Upid, type UpidFacts } from "../../../workers/pve/upid.ts";

export class SimulatedClock implements WatcherClock {
  #now = 0;
  #order = 0;
  readonly #timers = new Map<number, Timer>();

  now(): number {
    return this.#now;
  }

  after(ms: number, run: () => void): () => void {
    const id = this.#order++;
    this.#timers.set(id, { id, at: this.#now + ms, run });
    return () => this.#timers.delete(id);
  }

  /** Of those that are due at once, the one that was set first: a map keeps their order. */
  #next(): Timer | undefined {
    let next: Timer | undefined;
    for (const timer of this.#timers.values()) if (next === undefined || timer.at < next.at) next = timer;
    return next;
  }

  get pending(): number {
    return this.#timers.size;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  /** Lets time pass until the promise has settled, or until there is nothing left that could settle it. */
  async until<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    const mark = () => {
      settled = true;
    };
    promise.then(mark, mark);
    for (;;) {
      await new Promise(setImmediate);
      if (settled) return await promise;
      const next = this.#next();
      if (next === undefined) throw new Error("nothing will ever happen");
      this.#timers.delete(next.id);
      this.#now = Math.max(this.#now, next.at);
      next.run();
    }
  }
}

interface Timer {
  id: number;
  at: number;
  run: () => void;
}

interface SimulatedTask {
  facts: UpidFacts;
  endsAt: number;
  exitstatus: string;
  /** The list goes on showing it as running. */
  listedForever: boolean;
}

export class SimulatedNode {
  readonly clock = new SimulatedClock();
  readonly requests: { at: number; what: "status" | "list" }[] = [];
  readonly #tasks = new Map<Upid, SimulatedTask>();
  latencyMs = 5;
  /** Thrown in place of an answer while set. */
  failure: FleetError | undefined;
  #count = 0;

  start(ms: number, options: { type?: string; exitstatus?: string; listedForever?: boolean } = {}): Upid {
    const { type = "vzstart", exitstatus = "OK", listedForever = false } = options;
    const pid = (this.#count++).toString(16).toUpperCase().padStart(8, "0");
    const upid = Upid.parse(`UPID:pve1:${pid}:00036332:6B048689:${type}:201:root@pam!full:`);
    this.#tasks.set(upid, { facts: parseUpid(upid), endsAt: this.clock.now() + ms, exitstatus, listedForever });
    return upid;
  }

  endOf(upid: Upid): number {
    return this.#tasks.get(upid)?.endsAt ?? Number.NaN;
  }

  get tasks(): TasksApi {
    return {
      status: (upid, { signal }) => this.#answer("status", signal, () => this.#status(upid)),
      list: (_, { source, limit = 50 }, { signal }) =>
        this.#answer("list", signal, () => {
          const entries = [...this.#tasks].map(([upid, task]) => this.#entry(upid, task));
          // Newest first, as PVE has them: what is cut off is what has run longest.
          const running = entries.filter((entry) => entry.status === "RUNNING").reverse();
          const ended = entries.filter((entry) => entry.status !== "RUNNING").sort((a, b) => b.endtime - a.endtime);
          return (source === "active" ? running : [...running, ...ended]).slice(0, limit);
        }),
      stop: () => Promise.reject(new Error("not simulated")),
      log: () => Promise.reject(new Error("not simulated")),
    };
  }

  async #answer<T>(what: "status" | "list", signal: AbortSignal, look: () => T): Promise<T> {
    this.requests.push({ at: this.clock.now(), what });
    const { failure } = this;
    await this.clock.sleep(this.latencyMs / 2);
    signal.throwIfAborted();
    if (failure !== undefined) throw failure;
    const seen = look();
    await this.clock.sleep(this.latencyMs / 2);
    signal.throwIfAborted();
    return seen;
  }

  #status(upid: Upid) {
    const task = this.#tasks.get(upid);
    if (task === undefined) throw new FleetError("task_lost", "no such task");
    if (task.endsAt > this.clock.now()) return { status: "running" as const };
    return { status: "stopped" as const, exitstatus: task.exitstatus };
  }

  #entry(upid: Upid, task: SimulatedTask) {
    const { node, type, id, user, starttime } = task.facts;
    const running = task.listedForever || task.endsAt > this.clock.now();
    return {
      upid,
      node,
      type,
      id,
      user,
      starttime,
      endtime: task.endsAt,
      status: running ? "RUNNING" : task.exitstatus,
    };
  }
}

/** A generator of [0, 1) that gives the same numbers in every run (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}
