/**
 * Addresses of the machines that a fleet is made of: its workers and gates, Redis, PVE's nodes. A guest can give itself any
 * address of its network; one that is ours is no sandbox's, however it got there.
 */
import { lookup } from "node:dns/promises";
import { networkInterfaces } from "node:os";
import type { Logger } from "pino";
import type { WorkerConfig } from "../shared/config.ts";
import { FleetError } from "../shared/errors.ts";
import { parseRedisUrl, type RedisConnection } from "../shared/redis/connect.ts";
import type { Keys } from "../shared/state/keys.ts";
import { startEvery } from "./control/every.ts";
import type { PveApi } from "./pve/api.ts";

export interface OwnMachines {
  has(address: string): boolean;
}

const LOOK_MS = 60_000;
/** Nodes seldom get another address, and asking for them is a request to PVE. */
const NODES_MS = 3_600_000;
/** A process that has not told of its addresses for so long is no more. */
const GONE_MS = 86_400_000;

export interface OwnMachinesOptions {
  redis: RedisConnection;
  keys: Keys;
  pve: PveApi;
  config: WorkerConfig;
  log: Logger;
}

export function startOwnMachines({ redis, keys, pve, config, log }: OwnMachinesOptions): OwnMachines & Disposable {
  const hosts = [
    ...parseRedisUrl(config.REDIS_URL).hosts.map(({ host }) => host),
    ...config.PVE_API_URL.map((url) => new URL(url).hostname.replace(/^\[|\]$/g, "")),
  ];
  let known: ReadonlySet<string> = new Set(ownAddresses());
  let nodes: { addresses: string[]; at: number } | null = null;

  /** Those that other processes told of, too; all see what this one tells. */
  const told = async (): Promise<string[]> => {
    const now = Date.now();
    for (const address of ownAddresses()) await redis.hset(keys.machines, address, now);
    const all = Object.entries(await redis.hgetall(keys.machines));
    const gone = all.filter(([, at]) => now - Number(at) > GONE_MS).map(([address]) => address);
    if (gone.length > 0) await redis.hdel(keys.machines, ...gone);
    return all.map(([address]) => address);
  };
  const nodeAddresses = async (): Promise<string[]> => {
    if (nodes !== null && Date.now() - nodes.at < NODES_MS) return nodes.addresses;
    const entries = await pve.clusterStatus({ signal: AbortSignal.timeout(10_000) });
    nodes = { addresses: entries.flatMap(({ type, ip }) => (type === "node" && ip ? [ip] : [])), at: Date.now() };
    return nodes.addresses;
  };
  const look = async () => {
    const lookups = hosts.map(async (host) => (await lookup(host, { all: true })).map(({ address }) => address));
    const found = await Promise.allSettled([told(), nodeAddresses(), ...lookups]);
    const failed = found.find((one) => one.status === "rejected");
    if (failed) log.debug({ err: failed.reason }, "not all addresses of the fleet's own machines could be read");
    const read = found.flatMap((one) => (one.status === "fulfilled" ? one.value : []));
    // What could not be read now was true a minute ago.
    known = new Set([...ownAddresses(), ...read, ...(failed ? known : [])]);
  };
  const looked = (error: unknown) => log.debug({ err: error }, "could not look for the fleet's own machines");
  look().catch(looked);
  const timer = startEvery(LOOK_MS, look, looked);
  return {
    has: (address) => known.has(address),
    [Symbol.dispose]: () => timer[Symbol.dispose](),
  };
}

/** Of loopback only those two: all of 127.0.0.0/8 is this machine's, and sandboxes are there where that is allowed. */
const ownAddresses = (): string[] => [
  "127.0.0.1",
  "::1",
  ...Object.values(interfaces()).flatMap((all = []) =>
    all.filter(({ internal }) => !internal).map(({ address }) => address),
  ),
];

function interfaces() {
  try {
    return networkInterfaces();
  } catch (cause) {
    const text =
      "this machine's own addresses can't be listed; a systemd unit must allow AF_NETLINK (RestrictAddressFamilies), as those of deploy/systemd do";
    throw new FleetError("not_configured", text, { cause });
  }
}
