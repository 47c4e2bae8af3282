/** Who listens to which pub/sub channel, over one connection for all of them; it is open while somebody listens. */
import { closeRedis, type RedisConnection } from "./connect.ts";

export class Channels {
  readonly #open: () => RedisConnection;
  readonly #listeners = new Map<string, Set<() => void>>();
  #redis: RedisConnection | undefined;

  constructor(open: () => RedisConnection) {
    this.#open = open;
  }

  /**
   * `listener` is called for each message, and whenever some may have been missed: once the channel is listened to, and
   * after a reconnect. Where that takes long or a message is lost it is not, so look by yourself now and then.
   */
  listen(channel: string, listener: () => void): Disposable {
    const redis = this.#connect();
    const listeners = this.#listeners.get(channel) ?? new Set();
    this.#listeners.set(channel, listeners.add(listener));
    redis.subscribe(channel).then(listener, () => {}); // the connection was closed
    return { [Symbol.dispose]: () => this.#leave(channel, listener) };
  }

  async close(): Promise<void> {
    const redis = this.#redis;
    this.#redis = undefined;
    this.#listeners.clear();
    if (redis) await closeRedis(redis);
  }

  #connect(): RedisConnection {
    if (this.#redis) return this.#redis;
    const redis = this.#open();
    redis.on("message", (channel: string) => this.#call(channel));
    redis.on("ready", () => {
      for (const channel of this.#listeners.keys()) this.#call(channel);
    });
    this.#redis = redis;
    return redis;
  }

  #call(channel: string): void {
    for (const listener of this.#listeners.get(channel) ?? []) listener();
  }

  #leave(channel: string, listener: () => void): void {
    const listeners = this.#listeners.get(channel);
    if (!listeners?.delete(listener) || listeners.size > 0) return;
    this.#listeners.delete(channel);
    if (this.#listeners.size === 0) void this.close();
    else this.#redis?.unsubscribe(channel).catch(() => {}); // the connection was closed
  }
}
