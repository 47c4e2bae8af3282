/** Ctrl-C (and a polite kill): the first asks for a clean end, the second does not wait for it. */
import { EXIT, Interrupted } from "./exit-codes.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

export interface Interrupt extends Disposable {
  /** Aborts with `Interrupted`. */
  readonly signal: AbortSignal;
}

export function listenForInterrupt(exit: (code: number) => void): Interrupt {
  const controller = new AbortController();
  const onSignal = () => {
    if (controller.signal.aborted) exit(EXIT.interrupted);
    else controller.abort(new Interrupted("interrupted"));
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  return {
    signal: controller.signal,
    [Symbol.dispose]() {
      for (const name of SIGNALS) process.off(name, onSignal);
    },
  };
}
