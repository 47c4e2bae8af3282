/** Whether the clocks agree of who writes times into the records: this machine, Redis, PVE's nodes. */
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import type { RedisConnection } from "../../shared/redis/connect.ts";
import type { PveApi } from "../pve/api.ts";
import { type Finding, ok, warning } from "./finding.ts";

/** PVE tells whole seconds. */
const APART_MS = 3_000;

interface Clock {
  of: string;
  /** How far it is ahead of this machine's. */
  aheadMs: number;
}

/** `redis`: null where there is none, which is told of elsewhere. */
export async function examineClocks(
  { redis, pve }: { redis: RedisConnection | null; pve: PveApi },
  nodes: readonly NodeName[],
  signal: AbortSignal,
): Promise<Finding[]> {
  const check = "clocks";
  const reads = [
    ...(redis === null ? [] : [readClock("Redis", () => timeOf(redis))]),
    ...nodes.map((node) => readClock(node, async () => 1_000 * (await pve.nodeTime(node, { signal })).time + 500)),
  ];
  const clocks = (await Promise.all(reads)).filter((clock) => clock !== null);
  const apart = clocks.filter(({ aheadMs }) => Math.abs(aheadMs) > APART_MS);
  if (apart.length === 0) return [ok(check, `this machine's agrees with ${clocks.length} others`)];
  const named = apart.map(({ of, aheadMs }) => `${of} ${Math.round(Math.abs(aheadMs) / 1_000)} s ${aheadOf(aheadMs)}`);
  // Where all are, it is this one.
  const where = apart.length === clocks.length && clocks.length > 1 ? "on this machine" : "there";
  return [
    warning(
      check,
      `apart from this machine's: ${named.join(", ")}: TTLs end early or late, and tasks are taken for others'`,
      `Run a time service ${where}: timedatectl set-ntp true; PVE has chrony: chronyc tracking`,
    ),
  ];
}

const aheadOf = (ms: number) => (ms > 0 ? "ahead" : "behind");

/** Null where the token may not ask. */
async function readClock(of: string, read: () => Promise<number>): Promise<Clock | null> {
  const from = Date.now();
  try {
    const at = await read();
    return { of, aheadMs: at - (from + Date.now()) / 2 };
  } catch (error) {
    if (error instanceof FleetError && error.code === "forbidden") return null;
    throw error;
  }
}

async function timeOf(redis: RedisConnection): Promise<number> {
  const [seconds = 0, micros = 0] = await redis.time();
  return 1_000 * Number(seconds) + Number(micros) / 1_000;
}
