/** What a fleet client is made from, checked once. */
import { z } from "zod";
import { loadSharedConfig, Prefix, RedisUrl, SecretKeys } from "../shared/config.ts";
import { FleetError } from "../shared/errors.ts";
import { TeamId } from "../shared/ids.ts";
import type { RedisConnection } from "../shared/redis/connect.ts";

export interface FleetOptions {
  /** `redis://host:6379` and its kin (see `connectRedis`), or a connection of yours, which stays yours to close. */
  redis: string | RedisConnection;
  /** Which fleet, in braces; `{fleet}` when absent. The workers' FLEET_PREFIX. */
  prefix?: string | undefined;
  /** Whom operations count for. With a team, other teams' sandboxes and operations are out of reach. */
  team?: string | undefined;
  /** Seals env, stdin and files: as FLEET_SECRET_KEY, or the 32-byte keys themselves. Needed only where there are some. */
  secretKey?: string | readonly Buffer[] | undefined;
  /** Longest wait for Redis to answer one request, in ms (15,000); waiting for results is not bounded by it. */
  requestTimeoutMs?: number | undefined;
}

export interface CheckedOptions {
  redis: string | RedisConnection;
  prefix: string;
  team: TeamId | undefined;
  keyring: readonly Buffer[] | undefined;
  requestTimeoutMs: number;
}

const Texts = z.object({
  redis: RedisUrl.optional(),
  prefix: Prefix.default("{fleet}"),
  team: TeamId.optional(),
  secretKey: SecretKeys.optional(),
  requestTimeoutMs: z.number().int().min(1).max(3_600_000).default(15_000),
});

/** Throws `not_configured` that names every bad option, never with its value. */
export function checkOptions(options: FleetOptions): CheckedOptions {
  const { redis, secretKey } = options;
  const parsed = Texts.safeParse({
    ...options,
    redis: isUrl(redis) ? redis : undefined,
    secretKey: typeof secretKey === "string" ? secretKey : undefined,
  });
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => `${issue.path.join(".")} ${issue.message}`);
    throw new FleetError("not_configured", problems.join("; "), {
      facts: { options: parsed.error.issues.map((issue) => issue.path.join(".")) },
    });
  }
  if (typeof redis === "object" && redis.options.keyPrefix) {
    throw new FleetError(
      "not_configured",
      "redis: its keyPrefix would hide it from the workers; name a fleet by prefix",
      {
        facts: { options: ["redis"] },
      },
    );
  }
  const { prefix, team, requestTimeoutMs } = parsed.data;
  const keyring = typeof secretKey === "string" ? parsed.data.secretKey : secretKey;
  return { redis, prefix, team, keyring, requestTimeoutMs };
}

const isUrl = (redis: unknown): boolean => typeof redis !== "object" || redis === null;

/** Options from REDIS_URL, FLEET_PREFIX, FLEET_TEAM and FLEET_SECRET_KEY. Throws `not_configured`. */
export function toFleetOptions(env: Readonly<Record<string, string | undefined>>): FleetOptions {
  const config = loadSharedConfig(env);
  return {
    redis: config.REDIS_URL,
    prefix: config.FLEET_PREFIX,
    team: config.FLEET_TEAM,
    secretKey: config.FLEET_SECRET_KEY,
  };
}
