/** What wakes who waits: aborted operations, freed slots, ended operations. A lost message only costs the waiter's own time limit. */
import { closeRedis, type RedisConnection } from "../shared/redis/connect.ts";
import type { Keys } from "../shared/state/keys.ts";

export type WakeKind = "abort" | "free" | "ended";

export interface Wake extends AsyncDisposable {
  on(listener: (kind: WakeKind, subject: string) => void): () => void;
  /** Resolves at the next message of one of `kinds`, or after `timeoutMs`; throws the signal's reason. */
  next(kinds: readonly WakeKind[], options: { timeoutMs: number; signal: AbortSignal }): Promise<void>;
}

/** `subscriber` becomes this hub's own connection. */
export async function startWake(subscriber: RedisConnection, keys: Keys): Promise<Wake> {
  const listeners = new Set<(kind: WakeKind, subject: string) => void>();
  subscriber.on("message", (_channel: string, message: string) => {
    const [kind, subject = ""] = message.split(" ");
    if (kind === "abort" || kind === "free" || kind === "ended")
      for (const listener of listeners) listener(kind, subject);
  });
  await subscriber.subscribe(keys.wake);

  const on: Wake["on"] = (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  };
  return {
    on,
    next(kinds, { timeoutMs, signal }) {
      return new Promise<void>((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason);
        const done = (settle: () => void) => {
          clearTimeout(timer);
          off();
          signal.removeEventListener("abort", onAbort);
          settle();
        };
        const onAbort = () => done(() => reject(signal.reason));
        const timer = setTimeout(() => done(resolve), timeoutMs);
        const off = on((kind) => {
          if (kinds.includes(kind)) done(resolve);
        });
        signal.addEventListener("abort", onAbort);
      });
    },
    async [Symbol.asyncDispose]() {
      listeners.clear();
      await closeRedis(subscriber);
    },
  };
}
