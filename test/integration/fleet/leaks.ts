/** What must not be left behind: keys, leases, containers, connections, handles. Each finding is one line for people. */
import { z } from "zod";
import type { RedisConnection } from "../../../shared/redis/connect.ts";
import type { Keys } from "../../../shared/state/keys.ts";
import { decodeSandbox } from "../../../shared/state/operations.ts";
import { isGone, isProvisional, type SandboxRecord } from "../../../shared/state/records.ts";
import type { Pve } from "../../pve/index.ts";
import { until } from "./until.ts";

/** Compares the records with PVE once the last operation has ended; nothing but this fleet may be in Redis. */
export async function leaksInRedis(redis: RedisConnection, keys: Keys, pve: Pve): Promise<string[]> {
  const leaks = await leaksOfFleet(redis, keys, pve);
  const outside = (await allKeys(redis)).filter((key) => !key.startsWith(`${keys.prefix}:`));
  return [...outside.map((key) => `key ${key} is outside ${keys.prefix}`), ...leaks];
}

/** As above, for one of several fleets; `pve` shows what is in its reach. */
export async function leaksOfFleet(
  redis: RedisConnection,
  keys: Keys,
  pve: Pick<Pve, "containers">,
): Promise<string[]> {
  await until(async () => (await redis.zcard(keys.open)) === 0, "the end of every operation").catch(async () => {});
  const open = await redis.zrange(keys.open, 0, "-1");
  const all = await allKeys(redis, `${keys.prefix}:*`);
  const sandboxes = await loadSandboxes(redis, keys, all);
  const alive = new Map(sandboxes.filter(({ state }) => !isGone(state)).map((one) => [String(one.id), one]));
  return [
    ...open.map((id) => `operation ${id} has not ended`),
    ...leftKeys(keys, all),
    ...(await leftLeases(redis, keys, all, alive)),
    ...(await leftContents(redis, keys)),
    ...differences(pve, [...alive.values()]),
  ];
}

async function allKeys(redis: RedisConnection, pattern = "*"): Promise<string[]> {
  return (await redis.keys(pattern)).sort();
}

async function loadSandboxes(redis: RedisConnection, keys: Keys, all: readonly string[]): Promise<SandboxRecord[]> {
  const own = all.filter((key) => key.startsWith(keys.sandbox("")));
  return Promise.all(own.map(async (key) => decodeSandbox(await redis.hgetall(key))));
}

/** Keys that only running operations have. */
function leftKeys(keys: Keys, all: readonly string[]): string[] {
  const passing = [
    "slot:",
    "slot-queue:",
    "held:",
    "changes:",
    "waiting:",
    "users:",
    "line:",
    "turns:",
    "secret:op_",
    "shell-input:",
    "aborting",
  ];
  const ofBatches = ["batch-live:", "batch-undo:", "batches-stopping"];
  const ofQuotas = ["flight:", "quota-line:", "quota-waiting"];
  return [...passing, ...ofBatches, ...ofQuotas].flatMap((name) =>
    all.filter((key) => key.startsWith(`${keys.prefix}:${name}`)).map((key) => `key ${key} outlived its operation`),
  );
}

/** What uploads brought goes with them; only what downloads fetched may be there, and go at any time. */
async function leftContents(redis: RedisConnection, keys: Keys): Promise<string[]> {
  const left = await redis.zrangebyscore(keys.contents, Date.now() + 1_000, "+inf");
  return left.map((id) => `the content of ${id} outlived its operation`);
}

/** Leases whose sandbox has ended. */
async function leftLeases(
  redis: RedisConnection,
  keys: Keys,
  all: readonly string[],
  alive: ReadonlyMap<string, SandboxRecord>,
): Promise<string[]> {
  const holders: [string, string[]][] = [
    ["instance ids", await redis.hvals(keys.instances)],
    ["VMIDs", await redis.hvals(keys.vmids)],
    ["leased addresses", await redis.hvals(keys.ips)],
    ["addresses", await redis.hvals(keys.addresses)],
    ["secrets", all.flatMap((key) => key.split(`${keys.secret("sbx_")}`)[1] ?? []).map((id) => `sbx_${id}`)],
  ];
  const byId = all.filter((one) => one.startsWith(keys.reserved("")) || one.startsWith(keys.templates("")));
  for (const key of byId) holders.push([key, await redis.hkeys(key)]);
  return holders.flatMap(([what, ids]) =>
    ids.filter((id) => !alive.has(id)).map((id) => `${what}: ${id} has ended and still holds one`),
  );
}

/** PVE's truth against the records, both ways. Containers without our stamp are not ours. */
function differences(pve: Pick<Pve, "containers">, alive: readonly SandboxRecord[]): string[] {
  const containers = pve
    .containers()
    .filter(({ config }) => config["description"]?.includes("sandbox-fleet ") === true);
  // The stamp of what was claimed from a pool follows a moment later.
  const ofSandbox = ({ id, member }: SandboxRecord) =>
    containers.filter(({ config }) =>
      [id, member].some((one) => one !== undefined && config["description"]?.includes(`"sandbox":"${one}"`)),
    );
  const strays = containers.filter(({ vmid }) => !alive.some((one) => one.vmid === vmid));
  const told = alive.flatMap((one) => {
    const [container, ...more] = ofSandbox(one);
    if (more.length > 0) return [`sandbox ${one.id} has ${more.length + 1} containers`];
    if (isProvisional(one.state)) return [`sandbox ${one.id} is still ${one.state}`];
    if (!container) return [`sandbox ${one.id} is ${one.state} and has no container`];
    const same = container.vmid === one.vmid && container.node === one.node;
    if (!same) return [`sandbox ${one.id} is at ${container.node}/${container.vmid}, not at ${one.node}/${one.vmid}`];
    const standing = container.template ? "template" : container.status;
    const state = one.state === "warm" ? "running" : one.state;
    if (state !== standing) return [`sandbox ${one.id} is ${standing}, not ${one.state}`];
    return container.lock === undefined ? [] : [`container ${container.vmid} is locked (${container.lock})`];
  });
  return [...told, ...strays.map(({ vmid, node }) => `container ${vmid} on ${node} belongs to nobody`)];
}

/** Connections to Redis that nobody closed; ours for looking is the one that may be there. */
export async function leftConnections(redis: RedisConnection): Promise<string[]> {
  const look = async () => {
    const list = z.string().parse(await redis.call("CLIENT", "LIST"));
    return list.split("\n").filter((line) => line !== "" && !line.includes("cmd=client"));
  };
  // A server notices a closed socket a moment later.
  await until(async () => (await look()).length === 0, "no connections", 2_000).catch(() => {});
  return (await look()).map((line) => `connection to Redis: ${line}`);
}

/** Kinds of open handles and how many; those that come and go by themselves left out. */
export function openResources(): Map<string, number> {
  const counts = new Map<string, number>();
  for (const name of process.getActiveResourcesInfo()) {
    if (!/^(TCP|Process|FSEvent|TLS)/.test(name)) continue;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

/** What keeps this process from ending by itself that was not there before. */
export async function leaksInProcess(before: ReadonlyMap<string, number>): Promise<string[]> {
  const more = () => [...openResources()].filter(([name, count]) => count > (before.get(name) ?? 0));
  await until(() => more().length === 0, "no open handles", 3_000).catch(() => {});
  return more().map(([name, count]) => `${count - (before.get(name) ?? 0)} open ${name}`);
}
