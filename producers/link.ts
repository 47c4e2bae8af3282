/** A client's connections to Redis: opened on first use, closed at once. */
import { Redis } from "ioredis";
import { defer } from "../shared/deferred.ts";
import { FleetError } from "../shared/errors.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../shared/redis/connect.ts";

export interface Link {
  /** The connection for requests; opened by the first use. Throws `shutting_down` once closed. */
  redis(): RedisConnection;
  /** One request: brings a deadline, and turns what Redis throws into a FleetError. */
  request<T>(run: (redis: RedisConnection) => Promise<T>): Promise<T>;
  /** A connection of its own, for a reader that blocks; the caller closes it. */
  openBlocking(): RedisConnection;
  close(): Promise<void>;
}

export function createLink(target: string | RedisConnection, requestTimeoutMs: number): Link {
  let own: RedisConnection | undefined;
  let closed = false;
  const running = new Set<(reason: FleetError) => void>();
  let lastError: unknown;
  // Without a listener ioredis prints each failed attempt; requests report the last one with their deadline.
  const listen = (redis: RedisConnection) =>
    redis.on("error", (error: unknown) => {
      lastError = error;
    });
  let isReplacing = false;
  /** One that says that it is up and does not answer: a half-open connection, which TCP would notice minutes later. */
  const replace = (redis: RedisConnection) => {
    if (isReplacing || redis.status !== "ready") return;
    isReplacing = true;
    redis.once("close", () => {
      isReplacing = false;
    });
    redis.disconnect(true);
  };
  const redis = (): RedisConnection => {
    if (closed) throw closedError();
    if (typeof target !== "string") return target;
    own ??= listen(connectRedis(target));
    return own;
  };
  return {
    redis,
    async request(run) {
      const connection = redis();
      const { promise: expired, reject } = defer<never>();
      const timer = setTimeout(() => {
        if (connection === own) replace(own);
        reject(toUnavailable(requestTimeoutMs, lastError));
      }, requestTimeoutMs);
      running.add(reject);
      const asked = (async () => run(connection))();
      try {
        return await Promise.race([asked, expired]);
      } catch (error) {
        asked.catch(() => {}); // may still fail later, when nobody waits for it any more
        throw closed ? closedError() : toRedisError(error);
      } finally {
        clearTimeout(timer);
        running.delete(reject);
      }
    },
    openBlocking() {
      return listen(duplicate(redis()));
    },
    async close() {
      closed = true;
      for (const reject of running) reject(closedError());
      if (own) await closeRedis(own);
    },
  };
}

/** For waits that must survive any outage: commands of a blocking reader are never given up by count. See `connectRedis`. */
function duplicate(redis: RedisConnection): RedisConnection {
  const options = { maxRetriesPerRequest: null, autoResubscribe: false };
  if (redis instanceof Redis) return redis.duplicate({ ...options, lazyConnect: false });
  return redis.duplicate([], { redisOptions: options, lazyConnect: false });
}

export const closedError = (): FleetError => new FleetError("shutting_down", "this fleet client was closed");

/** For whoever may have asked for something. */
export const MAY_BE_ACCEPTED = "; a request may still be accepted, so repeat it with the same idempotencyKey";

function toUnavailable(timeoutMs: number, cause: unknown): FleetError {
  const why = codeOf(cause);
  return new FleetError(
    "redis_unavailable",
    `Redis did not answer within ${timeoutMs} ms${why ? ` (${why})` : ""}${MAY_BE_ACCEPTED}`,
    { cause, facts: why ? { reason: why } : {} },
  );
}

/** What Redis or its connection said, as our own error. */
export function toRedisError(error: unknown): unknown {
  if (error instanceof FleetError || !isRedisError(error)) return error;
  return new FleetError(
    "redis_unavailable",
    `Redis refused or broke off the request (${codeOf(error) || error.name})`,
    {
      cause: error,
    },
  );
}

/** By name: ioredis keeps the classes in a package of its own. */
function isRedisError(error: unknown): error is Error {
  if (!(error instanceof Error)) return false;
  return (
    ["ReplyError", "AbortError", "MaxRetriesPerRequestError", "ClusterAllFailedError"].includes(error.name) ||
    "syscall" in error ||
    error.message === "Connection is closed." ||
    error.message.includes("enableOfflineQueue")
  );
}

/** ECONNREFUSED, NOAUTH and their like; never the whole text, which may quote a command. */
function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return "";
  if ("code" in error && typeof error.code === "string") return error.code;
  return /^[A-Z]{3,}\b/.exec(error.message)?.[0] ?? "";
}
