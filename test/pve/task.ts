import { now, type Random, sleep } from "./clock.ts";
import type { NodeLoad } from "./node-load.ts";
import type { TaskEntry } from "./views.ts";

export interface TaskUser {
  user: string;
  tokenid: string | undefined;
}

export interface Doomed {
  text: string;
  leaveLocks: boolean;
}

/** Why a task's worker was stopped from outside. */
export type Interruption = "interrupt" | "kill";

class Interrupted extends Error {
  readonly how: Interruption;
  constructor(how: Interruption) {
    super(`interrupted by signal`);
    this.how = how;
  }
}

/** One worker process of a node: its log, its clock, and the end that its status shows. */
export class Task {
  readonly upid: string;
  readonly type: string;
  readonly id: string;
  readonly node: string;
  readonly pid: number;
  readonly pstart: number;
  readonly by: TaskUser;
  readonly startedAt: number;
  target: number | undefined;
  endedAt: number | undefined;
  exitstatus: string | undefined;
  warnings = 0;
  readonly lines: string[] = [];
  readonly ended: Promise<void>;
  /** What the next piece of work counts from. */
  clock: number;
  /** Set by a fault: the end it shall come to once its work is done. */
  doomed: Doomed | undefined;
  /** Set by a fault: its work is not done before. */
  held: Promise<void> | undefined;
  readonly #stop = new AbortController();
  readonly #end = Promise.withResolvers<void>();

  constructor(
    facts: { type: string; id: string; node: string; pid: number; pstart: number; by: TaskUser; arrivedAt: number },
    closing: AbortSignal,
  ) {
    this.type = facts.type;
    this.id = facts.id;
    this.node = facts.node;
    this.pid = facts.pid;
    this.pstart = facts.pstart;
    this.by = facts.by;
    this.startedAt = facts.arrivedAt;
    this.clock = facts.arrivedAt;
    this.ended = this.#end.promise;
    const digits = (value: number) => value.toString(16).toUpperCase().padStart(8, "0");
    const numbers = `${digits(this.pid)}:${digits(this.pstart)}:${digits(this.starttime)}`;
    this.upid = `UPID:${this.node}:${numbers}:${this.type}:${this.id}:${this.userToken}:`;
    if (closing.aborted) this.#stop.abort(new Interrupted("kill"));
    else
      closing.addEventListener("abort", () => this.#stop.abort(new Interrupted("kill")), {
        once: true,
        signal: this.signal,
      });
  }

  get starttime(): number {
    return Math.floor(this.startedAt / 1000);
  }

  get userToken(): string {
    return this.by.tokenid === undefined ? this.by.user : `${this.by.user}!${this.by.tokenid}`;
  }

  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  log(line: string): void {
    this.lines.push(line);
  }

  warn(line: string): void {
    this.warnings += 1;
    this.log(`WARN: ${line}`);
  }

  /** Works until `ms` after the task's clock; heavy work shares the node's cores. */
  async spend(ms: number, load?: NodeLoad): Promise<void> {
    const left = this.clock + ms - now();
    if (load !== undefined && left > 0) await load.run(left, this.signal);
    else await sleep(left, this.signal);
    if (this.held !== undefined) await unlessAborted(this.held, this.signal);
    this.clock = now();
    // A fault's end comes after the time, and before the effect.
    if (this.doomed !== undefined) throw new Error(this.doomed.text);
  }

  stop(how: Interruption): void {
    this.#stop.abort(new Interrupted(how));
  }

  /** Runs the worker's body; never rejects: the outcome is the exitstatus. */
  async run(body: () => Promise<void>): Promise<void> {
    try {
      await body();
      if (this.doomed !== undefined) throw new Error(this.doomed.text);
      const outcome = this.warnings > 0 ? `WARNINGS: ${this.warnings}` : "OK";
      this.log(`TASK ${outcome}`);
      this.#finish(outcome);
    } catch (error) {
      this.#fail(error);
    }
  }

  #fail(error: unknown): void {
    if (error instanceof Interrupted) {
      if (error.how === "kill") this.lines.length = 0;
      this.#finish(error.how === "kill" ? "unable to read tail (got 0 bytes)" : "unexpected status");
      return;
    }
    const text = error instanceof Error ? error.message : String(error);
    this.log(`TASK ERROR: ${text}`);
    this.#finish(text);
  }

  #finish(exitstatus: string): void {
    this.exitstatus = exitstatus;
    this.endedAt = now();
    this.#end.resolve();
    // Takes the listener off the closing signal.
    this.#stop.abort(new Interrupted("kill"));
  }

  toEntry(): TaskEntry {
    return {
      upid: this.upid,
      type: this.type,
      id: this.id,
      node: this.node,
      startedAt: this.startedAt,
      ...(this.target === undefined ? {} : { target: this.target }),
      ...(this.endedAt === undefined ? {} : { endedAt: this.endedAt }),
      ...(this.exitstatus === undefined ? {} : { exitstatus: this.exitstatus }),
    };
  }
}

async function unlessAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    await Promise.race([promise, aborted.promise]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

/** Its process has exited without a word of how. */
export const exited = (): Error => new Interrupted("interrupt");

export function isInterrupted(error: unknown): error is Error & { how: Interruption } {
  return error instanceof Interrupted;
}

/** ± share, from the seeded source. */
export function jittered(ms: number, share: number, random: Random): number {
  return ms * (1 + share * (random() * 2 - 1));
}
