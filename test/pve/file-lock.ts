import { Refusal } from "./refusal.ts";

interface Waiter {
  grant: () => void;
}

/** A flock. That on a container's config file start, stop, shutdown, destroy and config changes hold while they work. */
export class FileLock {
  readonly #path: string;
  #held = false;
  readonly #waiting: Waiter[] = [];

  constructor(path: string) {
    this.#path = path;
  }

  /** Runs `body` under the lock; `onWait` is called when somebody else holds it, `onGot` when it then came free. */
  async hold<T>(
    body: () => T | Promise<T>,
    wait: { timeoutMs: number; signal: AbortSignal; onWait?: () => void; onGot?: () => void },
  ): Promise<T> {
    if (this.#held) {
      wait.onWait?.();
      await this.#queue(wait.timeoutMs, wait.signal);
      wait.onGot?.();
    }
    this.#held = true;
    try {
      return await body();
    } finally {
      this.#release();
    }
  }

  #queue(timeoutMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return Promise.reject(signal.reason);
    return new Promise((resolve, reject) => {
      const leave = (error: unknown) => {
        const index = this.#waiting.indexOf(waiter);
        if (index >= 0) this.#waiting.splice(index, 1);
        settle();
        reject(error);
      };
      const onAbort = () => leave(signal.reason);
      const timer = setTimeout(
        () => leave(new Refusal(500, `can't lock file '${this.#path}' - got timeout`)),
        timeoutMs,
      );
      const settle = () => {
        clearTimeout(timer);
        signal.removeEventListener("abort", onAbort);
      };
      const waiter: Waiter = {
        grant: () => {
          settle();
          resolve();
        },
      };
      signal.addEventListener("abort", onAbort, { once: true });
      this.#waiting.push(waiter);
    });
  }

  /** Hands over without a gap, so that nobody can slip in between. */
  #release(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#held = false;
    else next.grant();
  }
}
