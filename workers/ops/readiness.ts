/** Whether work sent now would be done by this process and by PVE; says what is not. */
import { randomUUID } from "node:crypto";
import { toFleetError } from "../../shared/errors.ts";
import type { WorkerContext } from "../context.ts";

export interface Readiness {
  ready: boolean;
  /** Who answers; with a port that is taken it may be another. */
  pid: number;
  /** `ok`, or what is wrong. */
  checks: Record<"redis" | "pve" | "workers", string>;
}

const PATIENCE_MS = 3_000;
/** Workers write every second, and read the cluster every ten. */
const SILENT_MS = 10_000;
const STALE_MS = 60_000;

export async function checkReadiness(context: WorkerContext): Promise<Readiness> {
  const [redis, workers] = await Promise.all([within(() => checkRedis(context)), within(() => checkWorkers(context))]);
  const checks = { redis, pve: checkPve(context), workers };
  return { ready: Object.values(checks).every((text) => text === "ok"), pid: process.pid, checks };
}

async function within(check: () => Promise<string>): Promise<string> {
  const late = Promise.withResolvers<string>();
  const timer = setTimeout(() => late.resolve(`no answer within ${PATIENCE_MS} ms`), PATIENCE_MS);
  const asked = check().catch((error: unknown) => toFleetError(error).message);
  return Promise.race([asked, late.promise]).finally(() => clearTimeout(timer));
}

/** A replica, a full one or one with a broken disk still answers a PING. */
async function checkRedis({ redis, keys }: WorkerContext): Promise<string> {
  await redis.set(`${keys.prefix}:ready:${randomUUID()}`, "1", "PX", 1_000);
  return "ok";
}

async function checkWorkers({ redis, keys, config }: WorkerContext): Promise<string> {
  const at = await redis.hget(keys.pulse, "at");
  const silentMs = at === null ? Number.POSITIVE_INFINITY : Date.now() - Number(at);
  if (silentMs < SILENT_MS) return "ok";
  const whose = config.FLEET_ROLES.has("worker") ? "this process or another" : "any process with the role worker";
  return `no sign of ${whose} for ${Number.isFinite(silentMs) ? `${Math.round(silentMs / 1_000)} s` : "as long as Redis knows"}`;
}

function checkPve({ inventory }: WorkerContext): string {
  try {
    const { at, nodes } = inventory.current();
    const trouble = inventory.trouble();
    const age = Date.now() - at;
    if (age > STALE_MS) return `not read for ${Math.round(age / 1_000)} s${trouble ? `: ${trouble.message}` : ""}`;
    return nodes.some(({ online }) => online) ? "ok" : "no node is online";
  } catch (error) {
    return toFleetError(error).message;
  }
}
