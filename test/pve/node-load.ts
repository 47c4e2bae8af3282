import { now } from "./clock.ts";

interface Job {
  left: number;
  done: () => void;
}

/** What each heavy task beyond the parallel ones costs all of them (fits 8 starts in 15 s on two cores). */
const OVERHEAD = 0.12;

/**
 * Heavy tasks (starts, stops, copies) of one node share its cores: up to `parallel` run at full speed, beyond that they
 * share what there is, less some overhead. With parallel 1.7 (the two-core machine of the recordings) 3 starts of 1.6 s
 * take 3.1 s and 8 take 13 s, where 3.0 s and 15 s were seen.
 */
export class NodeLoad {
  readonly parallel: number;
  readonly #jobs = new Set<Job>();
  #settledAt = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(parallel: number) {
    this.parallel = parallel;
  }

  /** How many run beyond full speed. */
  get excess(): number {
    return Math.max(0, this.#jobs.size - this.parallel);
  }

  /** Resolves when `ms` of work are done; rejects when the signal aborts. */
  run(ms: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const abort = () => {
        this.#settle();
        this.#jobs.delete(job);
        this.#plan();
        reject(signal.reason);
      };
      const done = () => {
        signal.removeEventListener("abort", abort);
        resolve();
      };
      const job: Job = { left: ms, done };
      signal.addEventListener("abort", abort, { once: true });
      this.#settle();
      this.#jobs.add(job);
      this.#plan();
    });
  }

  #speed(): number {
    const running = this.#jobs.size;
    if (running <= this.parallel) return 1;
    // More than five times too many was never measured: no worse than that.
    const excess = Math.min(this.excess, 4 * this.parallel);
    return this.parallel / (running * (1 + OVERHEAD * excess));
  }

  #settle(): void {
    const time = now();
    const progress = (time - this.#settledAt) * this.#speed();
    this.#settledAt = time;
    for (const job of this.#jobs) job.left -= progress;
  }

  #plan(): void {
    clearTimeout(this.#timer);
    let next = Number.POSITIVE_INFINITY;
    for (const job of this.#jobs) next = Math.min(next, job.left);
    if (next === Number.POSITIVE_INFINITY) return;
    this.#timer = setTimeout(() => this.#finish(), Math.max(0, next) / this.#speed());
  }

  #finish(): void {
    this.#settle();
    for (const job of [...this.#jobs]) {
      // Timers may fire a fraction of a millisecond early.
      if (job.left > 0.5) continue;
      this.#jobs.delete(job);
      job.done();
    }
    this.#plan();
  }
}
