/**
 * As `AbortSignal.any`, for sources that live as long as a process: to those Node 22 ties each signal that follows them for
 * good, and takes longer with each. These let go of them.
 */
import { setMaxListeners } from "node:events";

export interface LinkedSignal extends Disposable {
  readonly signal: AbortSignal;
  abort(reason?: unknown): void;
}

/** Aborts with the first of the sources, with its reason, or by `abort`; follows none of them once disposed of. */
export function linkSignals(...sources: readonly (AbortSignal | undefined)[]): LinkedSignal {
  const controller = new AbortController();
  const follow = (source: AbortSignal) => {
    const onAbort = () => controller.abort(source.reason);
    if (source.aborted) onAbort();
    expectMany(source);
    source.addEventListener("abort", onAbort, { once: true });
    return () => source.removeEventListener("abort", onAbort);
  };
  const leave = sources.flatMap((source) => (source === undefined ? [] : [follow(source)]));
  return {
    signal: controller.signal,
    abort: (reason) => controller.abort(reason),
    [Symbol.dispose]() {
      for (const one of leave) one();
    },
  };
}

/** Node 20 warns of a leak at the eleventh who listens. */
export function expectMany(signal: AbortSignal): void {
  if (signal instanceof EventTarget) setMaxListeners(0, signal); // one of another library need not be
}
