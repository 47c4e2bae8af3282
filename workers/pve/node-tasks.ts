import { type FleetError, toFleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import type { TasksApi } from "./api.ts";
import { isTaskSuccess, taskError } from "./errors.ts";
import { readTaskList } from "./task-list.ts";
import { type Durations, FOUND, inCompany, nextAskMs, type Plan } from "./task-schedule.ts";
import { createWait, dueOf, givenUp, pickByName, type Wait } from "./task-wait.ts";
import type { Upid } from "./upid.ts";

/** Milliseconds of a monotonic clock, and a timer that can be taken back. */
export interface WatcherClock {
  now(): number;
  after(ms: number, run: () => void): () => void;
}

export interface NodeTasksOptions {
  tasks: TasksApi;
  durations: Durations;
  clock: WatcherClock;
  /** Up to so many tasks are asked for when they are due, more at every tick. */
  few: number;
  /** One request in so many ms while there are more. */
  tickMs: number;
  giveUpMs: number;
  onIdle: () => void;
  /** For how many ms an end may have gone unnoticed. */
  onEnd: (lagMs: number) => void;
}

/** A hung node answers 596 after 30 s only; one lost request shall not cost that. */
const ASK_DEADLINE_MS = 10_000;
const MAX_RETRY_MS = 5_000;
/** Room in the list for tasks that have ended since the last one. */
const LIST_MARGIN = 20;
/** See `#many`. */
const LEFT_OVER = 3;
/** Asking again will not help, not soon; anything else is the node's weather. */
const FINAL = new Set(["task_lost", "forbidden", "invalid_input", "unauthorized", "tls_untrusted"]);

/** All waits for tasks of one node: one timer, and no request while nothing is due. */
export class NodeTasks {
  readonly #node: NodeName;
  readonly #options: NodeTasksOptions;
  readonly #waits = new Map<Upid, Wait>();
  readonly #abort = new AbortController();
  #disarm: () => void = () => {};
  #ticking = false;
  #lastSentAt = Number.NEGATIVE_INFINITY;
  #lastNamedAt = Number.NEGATIVE_INFINITY;
  /** Running tasks of others, which take up room in the list. */
  #others = 0;
  #failures = 0;
  #failingSince = 0;

  constructor(node: NodeName, options: NodeTasksOptions) {
    this.#node = node;
    this.#options = options;
  }

  async wait(upid: Upid, kind: string | undefined, signal: AbortSignal): Promise<{ exitstatus: string }> {
    const { promise, resolve, reject } = Promise.withResolvers<{ exitstatus: string }>();
    const wait = this.#waits.get(upid) ?? this.#begin(upid, kind);
    const waiter = { resolve, reject };
    wait.waiters.add(waiter);
    const onAbort = () => {
      wait.waiters.delete(waiter);
      reject(signal.reason);
      if (wait.waiters.size === 0) this.#drop(wait);
    };
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      return await promise;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  close(reason: unknown): void {
    for (const wait of [...this.#waits.values()]) this.#reject(wait, reason);
  }

  #begin(upid: Upid, kind: string | undefined): Wait {
    const { durations, clock } = this.#options;
    const plan = kind === undefined ? FOUND : durations.plan(kind);
    const wait = createWait(upid, kind, plan, clock.now());
    this.#waits.set(upid, wait);
    wait.nextAskAt = wait.startedAt + nextAskMs(this.#planOf(wait), 0, 0);
    this.#arm();
    return wait;
  }

  /** Those that are left of many stay many until they are very few, or their number alone would make them cost more. */
  get #many(): boolean {
    const { size } = this.#waits;
    return size > this.#options.few || (size > LEFT_OVER && [...this.#waits.values()].some(({ crowded }) => crowded));
  }

  /** Sets the one timer to what is due next. */
  #arm(): void {
    this.#disarm();
    this.#disarm = () => {};
    if (this.#many && this.#ticking) return;
    let dueAt = Number.POSITIVE_INFINITY;
    for (const wait of this.#waits.values()) if (!wait.asking) dueAt = Math.min(dueAt, wait.nextAskAt);
    if (dueAt === Number.POSITIVE_INFINITY) return;
    const at = this.#many ? Math.max(dueAt, this.#lastSentAt + this.#options.tickMs) : dueAt;
    this.#disarm = this.#options.clock.after(Math.max(0, at - this.#options.clock.now()), () => this.#fire());
  }

  #fire(): void {
    if (this.#many) void this.#tick();
    else this.#askDue();
    this.#arm();
  }

  #askDue(): void {
    const { byName, listed } = dueOf([...this.#waits.values()], this.#options.clock.now());
    for (const wait of byName) void this.#ask(wait);
    if (listed.length > 0) void this.#share(listed);
  }

  async #share(waits: readonly Wait[]): Promise<void> {
    for (const wait of waits) wait.asking = true;
    await this.#list(waits);
    for (const wait of waits) wait.asking = false;
    this.#arm();
  }

  /** One request for all, now and then one by name. */
  async #tick(): Promise<void> {
    const now = this.#options.clock.now();
    this.#ticking = true;
    const waits = [...this.#waits.values()];
    if (waits.length > this.#options.few) for (const wait of waits) wait.crowded = true;
    const named = pickByName(waits, { now, sinceMs: now - this.#lastNamedAt, tickMs: this.#options.tickMs });
    if (named !== undefined) this.#lastNamedAt = now;
    await (named === undefined ? this.#list(waits) : this.#ask(named));
    this.#ticking = false;
    this.#arm();
  }

  async #ask(wait: Wait): Promise<void> {
    wait.asking = true;
    const sentAt = this.#sending();
    try {
      const status = await this.#options.tasks.status(wait.upid, this.#call());
      this.#failures = 0;
      if (status.status === "stopped") this.#end(wait, status.exitstatus ?? "unexpected status", sentAt);
      else this.#running(wait, sentAt);
      wait.suspectAt = Math.max(wait.suspectAt, this.#options.clock.now() + wait.ranMs / 4);
    } catch (error) {
      const failure = toFleetError(error);
      if (FINAL.has(failure.code)) this.#reject(wait, failure.with({ upid: wait.upid }));
      else this.#failed(failure, [wait]);
    }
    wait.asking = false;
    this.#arm();
  }

  /**
   * `all` rather than `active`: it names the running ones first, then the archive from its end, with exit statuses.
   * So one request tells the end of any number of tasks, where `active` would leave one request for each.
   */
  async #list(waits: readonly Wait[]): Promise<void> {
    const sentAt = this.#sending();
    try {
      const limit = this.#waits.size + this.#others + LIST_MARGIN;
      const entries = await this.#options.tasks.list(this.#node, { source: "all", limit }, this.#call());
      this.#failures = 0;
      const { exits, running } = readTaskList(entries);
      // All running: there is more than there was room for.
      const cutOff = running >= limit;
      this.#others = cutOff ? running : Math.max(0, running - this.#waits.size);
      for (const wait of waits) {
        const exitstatus = exits.get(wait.upid);
        if (exitstatus !== undefined) this.#end(wait, exitstatus, sentAt);
        else if (exits.has(wait.upid)) this.#running(wait, sentAt);
        else wait.unlisted = !cutOff;
      }
    } catch (error) {
      const failure = toFleetError(error);
      if (failure.code === "tls_untrusted") for (const wait of waits) this.#reject(wait, failure);
      else this.#failed(failure, waits);
    }
  }

  #sending(): number {
    this.#lastSentAt = this.#options.clock.now();
    return this.#lastSentAt;
  }

  /** When PVE looked at a task: about half-way between question and answer. */
  #lookedAt(sentAt: number): number {
    return (sentAt + this.#options.clock.now()) / 2;
  }

  #call() {
    return { signal: this.#abort.signal, deadlineMs: ASK_DEADLINE_MS };
  }

  #running(wait: Wait, sentAt: number): void {
    const now = this.#options.clock.now();
    wait.asks++;
    wait.unlisted = false;
    wait.ranMs = this.#lookedAt(sentAt) - wait.startedAt;
    const halfWayMs = (now - sentAt) / 2;
    const next = wait.startedAt + nextAskMs(this.#planOf(wait), wait.asks, wait.ranMs) - halfWayMs;
    // A slow node is asked less often: it has the tasks themselves to do.
    wait.nextAskAt = Math.max(next, now + halfWayMs);
  }

  #planOf(wait: Wait): Plan {
    // Among many one request is for all, and load makes what was learned of one alone untrue.
    return this.#many ? FOUND : inCompany(wait.plan, this.#waits.size);
  }

  #failed(failure: FleetError, waits: readonly Wait[]): void {
    const now = this.#options.clock.now();
    if (this.#failures === 0) this.#failingSince = now;
    const retryMs = Math.min(MAX_RETRY_MS, 100 * 2 ** this.#failures);
    this.#failures++;
    for (const wait of waits) {
      const since = Math.max(this.#failingSince, wait.startedAt);
      if (now - since >= this.#options.giveUpMs) this.#reject(wait, givenUp(failure, wait.upid));
      else wait.nextAskAt = now + retryMs;
    }
  }

  #end(wait: Wait, exitstatus: string, sentAt: number): void {
    this.#options.onEnd(this.#options.clock.now() - wait.startedAt - wait.ranMs);
    if (!isTaskSuccess(exitstatus)) {
      this.#reject(wait, taskError(exitstatus, wait.upid));
      return;
    }
    if (wait.kind !== undefined && !wait.crowded) {
      this.#options.durations.learn(wait.kind, this.#planOf(wait), wait.ranMs, this.#lookedAt(sentAt) - wait.startedAt);
    }
    for (const waiter of wait.waiters) waiter.resolve({ exitstatus });
    this.#drop(wait);
  }

  #reject(wait: Wait, reason: unknown): void {
    for (const waiter of wait.waiters) waiter.reject(reason);
    this.#drop(wait);
  }

  #drop(wait: Wait): void {
    if (this.#waits.get(wait.upid) !== wait) return;
    this.#waits.delete(wait.upid);
    if (this.#waits.size > 0) {
      this.#arm();
      return;
    }
    this.#disarm();
    this.#abort.abort(new Error("nothing is waited for any more"));
    this.#options.onIdle();
  }
}
