/** One Redis server, Sentinel or Cluster, told by the URL. */
import { readFileSync } from "node:fs";
import { Cluster, Redis } from "ioredis";

export type RedisConnection = Redis | Cluster;

/** A server that says nothing does not close its end either; and ioredis waits for the end of what has long ended, too. */
const CLOSE_MS = 200;

/**
 * Opens a connection to what `url` names:
 * `redis://` or `rediss://` (TLS) for one server, `redis-sentinel://h1:26379,h2:26379/0?master=name`,
 * `redis-cluster://h1:6379,h2:6379`; `rediss-sentinel://` and `rediss-cluster://` with TLS. With TLS, `?ca=`, `cert=` and
 * `key=` name PEM files: who is trusted in place of the public CAs, and a certificate for servers that ask for one.
 * Commands wait through a reconnect and are never given up by count, so callers bring their own deadlines. Whoever subscribes
 * does so again at each `ready`.
 */
export function connectRedis(url: string): RedisConnection {
  const options = {
    maxRetriesPerRequest: null,
    disconnectTimeout: CLOSE_MS,
    autoResubscribe: false, // ioredis waits for no answer then; one that does not come would end the process
    retryStrategy: (times: number) => Math.min(50 * 2 ** Math.min(times, 6), 2_000),
  };
  const target = parseRedisUrl(url);
  const auth = {
    ...(target.username ? { username: target.username } : {}),
    ...(target.password ? { password: target.password } : {}),
    ...(target.tls ? { tls: readTls(target.files) } : {}),
  };
  switch (target.kind) {
    case "sentinel":
      return new Redis({
        ...options,
        ...auth,
        // Without these ioredis speaks plainly to both, `tls` or not.
        ...(target.tls ? { sentinelTLS: readTls(target.files), enableTLSForSentinelMode: true } : {}),
        sentinels: target.hosts,
        name: target.master,
        db: target.db,
      });
    case "cluster":
      return new Cluster(target.hosts, {
        redisOptions: { maxRetriesPerRequest: null, disconnectTimeout: CLOSE_MS, ...auth },
      });
    case "single":
      return new Redis({ ...options, ...auth, ...target.hosts[0], db: target.db });
  }
}

interface RedisTarget {
  kind: "single" | "sentinel" | "cluster";
  hosts: { host: string; port: number }[];
  master: string;
  db: number;
  username: string;
  password: string;
  tls: boolean;
  /** Paths of PEM files. */
  files: Partial<Record<(typeof TLS_FILES)[number], string>>;
}

const TLS_FILES = ["ca", "cert", "key"] as const;

const readTls = (files: RedisTarget["files"]) =>
  Object.fromEntries(Object.entries(files).map(([name, path]) => [name, readFileSync(path, "utf8")]));

/** Pure; exported for tests. Several hosts stand comma-separated, with the credentials before the first. */
export function parseRedisUrl(url: string): RedisTarget {
  const scheme = url.slice(0, url.indexOf("://"));
  const [authority = "", ...rest] = url.slice(scheme.length + 3).split(/(?=[/?])/);
  const at = authority.lastIndexOf("@");
  const first = new URL(`redis://${at < 0 ? "" : authority.slice(0, at + 1)}x${rest.join("")}`);
  const kind = scheme.endsWith("-sentinel") ? "sentinel" : scheme.endsWith("-cluster") ? "cluster" : "single";
  const hosts = authority
    .slice(at + 1)
    .split(",")
    .map((part) => new URL(`redis://${part}`))
    .map(({ hostname, port }) => ({
      host: hostname.replace(/^\[|\]$/g, ""),
      port: port === "" ? (kind === "sentinel" ? 26_379 : 6_379) : Number(port),
    }));
  return {
    kind,
    hosts,
    master: first.searchParams.get("master") ?? "mymaster",
    db: Number(first.pathname.slice(1) || 0),
    username: decodeURIComponent(first.username),
    password: decodeURIComponent(first.password),
    tls: scheme.startsWith("rediss"),
    files: Object.fromEntries(
      TLS_FILES.map((name) => [name, first.searchParams.get(name)]).filter(([, path]) => path !== null),
    ),
  };
}

const BROKEN: ReadonlySet<unknown> = new Set(["ECONNREFUSED", "ECONNRESET", "EPIPE", "ETIMEDOUT", "EHOSTUNREACH"]);

/** Whether an error says no more than that Redis is away, which each connection to it says. */
export const isConnectionError = (error: Error): boolean => "code" in error && BROKEN.has(error.code);

/** Closes without waiting for replies that may never come. */
export async function closeRedis(redis: RedisConnection): Promise<void> {
  if (redis.status === "end") return;
  const ended = new Promise<void>((resolve) => redis.once("end", resolve));
  // Between two tries to connect there is no socket, and ioredis emits no "end" for it.
  const unconnected = redis.status === "reconnecting";
  redis.disconnect();
  if (!unconnected) await ended;
}
