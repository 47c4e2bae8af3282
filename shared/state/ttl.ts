/** The ends of sandboxes that are not part of an operation: what workers allow, and extensions. */
import { z } from "zod";
import type { WorkerConfig } from "../config.ts";
import { FleetError } from "../errors.ts";
import type { SandboxId, TeamId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";
import { withPrelude } from "./prelude.ts";

type Settings = Pick<
  WorkerConfig,
  "FLEET_TTL_DEFAULT_SECONDS" | "FLEET_TTL_MAX_SECONDS" | "FLEET_TTL_WARNING_SECONDS" | "FLEET_IDLE_SECONDS"
>;

/** Producers ask without knowing the workers' configuration, so what is accepted is decided by what these last wrote down. */
export async function publishSettings(redis: RedisConnection, keys: Keys, config: Settings): Promise<void> {
  const most = config.FLEET_TTL_MAX_SECONDS;
  const values = {
    ttlDefaultSeconds: config.FLEET_TTL_DEFAULT_SECONDS ?? most,
    ttlMaxSeconds: most,
    ttlWarningSeconds: config.FLEET_TTL_WARNING_SECONDS,
    idleDefaultSeconds: config.FLEET_IDLE_SECONDS,
  };
  const step = redis.multi();
  for (const [name, value] of Object.entries(values)) {
    if (value === undefined) step.hdel(keys.limits, name);
    else step.hset(keys.limits, name, value);
  }
  await step.exec();
}

/**
 * Not by an operation: it must come in time also where workers are busy or away. ARGV: sandbox, seconds, team scope or '' →
 * [outcome, end, maximum]; `ending`: what is to end it has been asked for.
 */
const EXTEND = withPrelude(`
local id, seconds, scope = ARGV[2], tonumber(ARGV[3]), ARGV[4]
local key = sbxKey(id)
local state, team, maker = unpack(redis.call('HMGET', key, 'state', 'team', 'operation'))
if not team or (scope ~= '' and scope ~= team) then return {'unknown'} end
if GONE[state] then return {'gone'} end
for _, op in ipairs(redis.call('LRANGE', P..':changes:'..id, 0, -1)) do
  if redis.call('HGET', opKey(op), 'kind') == 'destroy' then return {'ending'} end
end
local most = setting('ttlMaxSeconds')
if most and seconds > most then return {'too_long', '', tostring(most)} end
local at, moved = extendEnd(id, nowMs() + seconds * 1000)
if moved then emit('sandbox.updated', ARGV[5], maker, id, team, '{"fields":["ttl"]}') end
return {'ok', at and string.format('%.0f', at) or ''}
`);

const ExtendReply = z.tuple([z.enum(["ok", "unknown", "gone", "ending", "too_long"])], z.string());

/**
 * It lives at least so long from now on. Returns its end in ms since the epoch; null: it has none.
 * Throws `invalid_input`, `sandbox_not_found`, or `sandbox_gone` also where its destroy has been asked for.
 */
export async function extendTtl(
  redis: RedisConnection,
  keys: Keys,
  { sandbox, seconds, scope, now }: { sandbox: SandboxId; seconds: number; scope: TeamId | undefined; now: number },
): Promise<number | null> {
  const args = [keys.prefix, sandbox, seconds, scope ?? "", now];
  const [outcome, at, most] = ExtendReply.parse(await runScript(redis, EXTEND, [keys.open], args));
  switch (outcome) {
    case "ok":
      return at === "" ? null : Number(at);
    case "unknown":
      throw new FleetError("sandbox_not_found", `there is no sandbox ${sandbox}`, { facts: { sandbox } });
    case "too_long":
      throw ttlTooLong(Number(most), { field: "seconds", asked: String(seconds) });
    default: {
      const why = outcome === "gone" ? "has ended" : "is being destroyed, which can't be taken back";
      throw new FleetError("sandbox_gone", `sandbox ${sandbox} ${why}`, { facts: { sandbox } });
    }
  }
}

/** `asked`: seconds, or `never`. */
export function ttlTooLong(
  maxSeconds: number,
  { field, asked }: { field: string; asked: string | undefined },
): FleetError {
  const problem = asked === "never" ? "null, for no end, is not allowed here" : `${asked} is too long`;
  return new FleetError(
    "invalid_input",
    `${field}: ${problem}; ask for at most ${maxSeconds}, the workers' FLEET_TTL_MAX_SECONDS, and extend it when it is needed for longer`,
    { facts: { fields: [field], maxSeconds } },
  );
}
