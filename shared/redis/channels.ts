/** Who listens to which pub/sub channel, over one connection for all of them; it is open while somebody listens. */
import { closeRedis, type RedisConnection } from "./connect.ts";

/** What was published; nothing where some may have been missed. */
export type Listener = (message: string | undefined) => void;

export class Channels {
  readonly #open: () => RedisConnection;
  readonly #listeners = new Map<string, Set<Listener>>();
  #redis: RedisConnection | undefined;
  /** Connections that nobody needs any more. */
  #ending: Promise<unknown> = Promise.resolve();

  constructor(open: () => RedisConnection) {
    this.#open = open;
  }

  /**
   * `listener` is called with each message, and without one whenever some may have been missed: once the channel is
   * listened to, and after a reconnect. Where that takes long or a message is lost it is not, so look by yourself now and then.
   */
  listen(channel: string, listener: Listener): Disposable {
    const redis = this.#connect();
    const listeners = this.#listeners.get(channel) ?? new Set();
    this.#listeners.set(channel, listeners.add(listener));
    subscribe(redis, [channel], () => listener(undefined));
    return { [Symbol.dispose]: () => this.#leave(channel, listener) };
  }

  async close(): Promise<void> {
    const redis = this.#redis;
    this.#redis = undefined;
    this.#listeners.clear();
    if (redis) this.#ending = Promise.all([this.#ending, closeRedis(redis)]);
    await this.#ending;
  }

  #connect(): RedisConnection {
    if (this.#redis) return this.#redis;
    const redis = this.#open();
    redis.on("message", (channel: string, message: string) => this.#call(channel, message));
    redis.on("ready", () => {
      const channels = [...this.#listeners.keys()];
      subscribe(redis, channels, () => {
        for (const channel of channels) this.#call(channel, undefined);
      });
    });
    this.#redis = redis;
    return redis;
  }

  #call(channel: string, message: string | undefined): void {
    for (const listener of this.#listeners.get(channel) ?? []) listener(message);
  }

  #leave(channel: string, listener: Listener): void {
    const listeners = this.#listeners.get(channel);
    if (!listeners?.delete(listener) || listeners.size > 0) return;
    this.#listeners.delete(channel);
    if (this.#listeners.size === 0) void this.close();
    else this.#redis?.unsubscribe(channel).catch(() => {}); // the connection was closed
  }
}

function subscribe(redis: RedisConnection, channels: readonly string[], then: () => void): void {
  if (channels.length > 0) redis.subscribe(...channels).then(then, () => {}); // the connection was closed
}
