/** What wakes who waits: aborted operations, freed slots, ended operations, jobs that left the queue of a node, changed nodes, revoked API keys, stopped batches. A lost message only costs the waiter's own time limit. */
import { closeRedis, type RedisConnection } from "../shared/redis/connect.ts";
import type { Keys } from "../shared/state/keys.ts";

const KINDS = ["abort", "free", "ended", "left", "node", "key", "batch"] as const;
export type WakeKind = (typeof KINDS)[number];

export interface Wake extends AsyncDisposable {
  on(listener: (kind: WakeKind, subject: string) => void): () => void;
  /** Begun before one looks whether what one waits for is there: what comes between the look and the wait is not missed. */
  watch(kinds: readonly WakeKind[]): Watch;
}

export interface Watch extends Disposable {
  /** Resolves at a message that came since the watch began or the last `next` ended, or after `timeoutMs`; throws the signal's reason. */
  next(options: { timeoutMs: number; signal: AbortSignal }): Promise<void>;
}

/** `subscriber` becomes this hub's own connection. */
export async function startWake(subscriber: RedisConnection, keys: Keys): Promise<Wake> {
  const listeners = new Set<(kind: WakeKind, subject: string) => void>();
  subscriber.on("message", (_channel: string, message: string) => {
    const [word, subject = ""] = message.split(" ");
    const kind = KINDS.find((one) => one === word);
    if (kind !== undefined) for (const listener of listeners) listener(kind, subject);
  });
  subscriber.on("ready", () => subscriber.subscribe(keys.wake).catch(() => {})); // the connection was closed
  await subscriber.subscribe(keys.wake);

  const on: Wake["on"] = (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  };
  return {
    on,
    watch(kinds) {
      let woken = Promise.withResolvers<void>();
      const off = on((kind) => {
        if (kinds.includes(kind)) woken.resolve();
      });
      return {
        async next({ timeoutMs, signal }) {
          signal.throwIfAborted();
          const { resolve, promise } = woken;
          const timer = setTimeout(resolve, timeoutMs);
          const onAbort = () => resolve();
          signal.addEventListener("abort", onAbort);
          await promise;
          clearTimeout(timer);
          signal.removeEventListener("abort", onAbort);
          woken = Promise.withResolvers<void>();
          signal.throwIfAborted();
        },
        [Symbol.dispose]: () => void off(),
      };
    },
    async [Symbol.asyncDispose]() {
      listeners.clear();
      await closeRedis(subscriber);
    },
  };
}
