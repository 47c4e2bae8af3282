/** Ctrl-C (and a polite kill): the first asks for a clean end, the second does not wait for it. */
import { EXIT, Interrupted } from "./exit-codes.ts";

/** One Ctrl-C comes twice where a parent passes it on, as `npm run` does; nobody presses it twice that fast. */
const SAME_PRESS_MS = 300;

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

export interface Interrupt extends Disposable {
  /** Aborts with `Interrupted`. */
  readonly signal: AbortSignal;
}

export function listenForInterrupt(exit: (code: number) => void): Interrupt {
  const controller = new AbortController();
  let first: number | undefined;
  const onSignal = () => {
    if (first === undefined) {
      first = performance.now();
      controller.abort(new Interrupted("interrupted"));
    } else if (performance.now() - first > SAME_PRESS_MS) exit(EXIT.interrupted);
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const name of SIGNALS) process.off(name, onSignal);
    },
  };
}
