/** Whether Redis keeps what it is given. */
import { randomUUID } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import { PLACE } from "../../shared/queues.ts";
import { closeRedis, connectRedis, parseRedisUrl, type RedisConnection } from "../../shared/redis/connect.ts";
import type { Keys } from "../../shared/state/keys.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";

/** BullMQ's own recommendation (RedisConnection.recommendedMinimumVersion); our scripts need no more. */
const LEAST_VERSION = [6, 2] as const;
/** Workers write every second. */
const SILENT_MS = 10_000;
const SLOW_MS = 10;
const PINGS = 10;
const ROOM = { warning: 0.75, problem: 0.95 };
/** More PVE requests at once than so many are queued by PVE, whose daemons have 3 workers a node. */
const MANY_REQUESTS = 32;

/** A connection that answers; rejects with the reason of the first failure rather than trying on. */
export async function openRedis(url: string, signal: AbortSignal): Promise<RedisConnection> {
  const redis = connectRedis(url);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  redis.once("ready", resolve);
  redis.on("error", reject);
  signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  try {
    await promise;
    return redis;
  } catch (error) {
    await closeRedis(redis);
    const where = parseRedisUrl(url).hosts.map(({ host, port }) => `${host}:${port}`);
    const reason = error instanceof Error ? error.message : "it can't be reached";
    throw new FleetError(
      "redis_unavailable",
      `no use of ${where.join(", ")}: ${reason}; REDIS_URL must name a Redis that runs, its user and password`,
      { cause: error },
    );
  }
}

export async function examineRedis(redis: RedisConnection, keys: Keys): Promise<Finding[]> {
  const fields = parseInfo(await redis.info());
  const field = (name: string) => fields.get(name) ?? "";
  return [
    versionOf(field),
    await writable(redis, keys),
    ...persistence(field, await setting(redis, "appendfsync")),
    policy(field("maxmemory_policy")),
    headroom(field),
    await latency(redis),
  ];
}

/** `name:value` lines, as INFO answers. */
const parseInfo = (text: string): ReadonlyMap<string, string> =>
  new Map([...text.matchAll(/^(\w+):(.*?)\r?$/gm)].map(([, name = "", value = ""]) => [name, value]));

type Field = (name: string) => string;

function versionOf(field: Field): Finding {
  const version = field("redis_version");
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const [needMajor, needMinor] = LEAST_VERSION;
  if (major > needMajor || (major === needMajor && minor >= needMinor)) return ok("redis.version", version);
  return problem("redis.version", `${version} is too old`, `Run ${LEAST_VERSION.join(".")} or newer; best 8`);
}

async function writable(redis: RedisConnection, keys: Keys): Promise<Finding> {
  try {
    await redis.set(`${keys.prefix}:doctor:${randomUUID()}`, "1", "PX", 1_000);
    return ok("redis.writes", "taken");
  } catch (error) {
    const reason = error instanceof Error ? error.message : "no reason given";
    return problem("redis.writes", `refused: ${reason}`, "REDIS_URL must name the primary, with a user that may write");
  }
}

function persistence(field: Field, fsync: string | null): Finding[] {
  const check = "redis.persistence";
  if (field("aof_enabled") !== "1")
    return [
      problem(
        check,
        "the append-only file is off: a restart of Redis loses what was accepted",
        "redis-cli config set appendonly yes, and appendonly yes in redis.conf",
      ),
    ];
  if (field("aof_last_write_status") !== "ok")
    return [
      problem(check, "the append-only file could not be written", "Look at Redis' log and the room on its volume"),
    ];
  if (fsync === "no")
    return [
      warning(
        check,
        "appendfsync is no: a crash of the machine may lose half a minute",
        "redis-cli config set appendfsync everysec, and in redis.conf",
      ),
    ];
  return [ok(check, `append-only file${fsync === null ? "" : `, fsync ${fsync}`}`)];
}

const policy = (value: string): Finding =>
  value === "noeviction"
    ? ok("redis.eviction", value)
    : problem(
        "redis.eviction",
        `maxmemory-policy is ${value}: a key that Redis throws out may be a sandbox's record`,
        "redis-cli config set maxmemory-policy noeviction, and in redis.conf",
      );

function headroom(field: Field): Finding {
  const check = "redis.memory";
  const used = Number(field("used_memory"));
  const set = Number(field("maxmemory"));
  const limit = set || Number(field("total_system_memory"));
  if (!(limit > 0)) return ok(check, `${toMib(used)} used; Redis tells no limit`);
  const share = used / limit;
  const text = `${toMib(used)} of ${toMib(limit)} used${set ? "" : " (no maxmemory; the machine's)"}`;
  const wayOut = "Give it more memory: redis-cli config set maxmemory …; or keep less: FLEET_RETENTION_HOURS";
  if (share > ROOM.problem) return problem(check, `${text}: writes are or will be refused`, wayOut);
  return share > ROOM.warning ? warning(check, text, wayOut) : ok(check, text);
}

const toMib = (bytes: number) => `${Math.round(bytes / 1_048_576)} MiB`;

async function latency(redis: RedisConnection): Promise<Finding> {
  const times: number[] = [];
  for (let n = 0; n < PINGS; n++) {
    const at = performance.now();
    await redis.ping();
    times.push(performance.now() - at);
  }
  const median = times.toSorted((one, other) => one - other)[PINGS / 2] ?? 0;
  const text = `${median.toFixed(1)} ms a round trip`;
  if (median < SLOW_MS) return ok("redis.latency", text);
  return warning("redis.latency", text, "Each step of an operation takes a few: run workers next to Redis");
}

/** Null where Redis does not tell, as managed ones do. */
async function setting(redis: RedisConnection, name: string): Promise<string | null> {
  try {
    const pairs: unknown = await redis.config("GET", name);
    return Array.isArray(pairs) && typeof pairs[1] === "string" ? pairs[1] : null;
  } catch {
    return null;
  }
}

/** The fleet's worker processes: their pulse, and their connections as BullMQ names them, which managed Redis may hide. */
export async function examineWorkers(
  redis: RedisConnection,
  { keys, perNode }: { keys: Keys; perNode: number },
): Promise<Finding[]> {
  const check = "workers";
  const at = Number(await redis.hget(keys.pulse, "at"));
  if (Date.now() - at > SILENT_MS)
    return [warning(check, "none is at work: what is accepted waits", "Start some: npm run worker, role worker")];
  const clients = await redis.client("LIST").catch(() => "");
  const name = `name=${keys.prefix}:${Buffer.from(PLACE).toString("base64")}`;
  const count = String(clients).split(name).length - 1;
  if (count * perNode > MANY_REQUESTS)
    return [
      warning(
        check,
        `${count} at work with ${perNode} connections each to a node, where PVE answers 3 requests at once`,
        "Set PVE_CONNECTIONS_PER_NODE lower, or run fewer",
      ),
    ];
  return [ok(check, count > 0 ? `${count} at work` : "at work")];
}
