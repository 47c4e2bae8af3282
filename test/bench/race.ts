/** Many claims at once from several processes, on members whose containers nobody needs; and what became of each. */
import { randomBytes } from "node:crypto";
import { z } from "zod";
import { newOperationId, newSandboxId, POOL_TEAM } from "../../shared/ids.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import { createKeys, type Keys } from "../../shared/state/keys.ts";
import { createPools } from "../../shared/state/pools.ts";
import { startProgram } from "./world.ts";

const TEMPLATE = "raced";
/** More than there are claims, so that each ends. */
const SPARE = 64;
const FIRST_VMID = 20_000;
const PAGE = 500;
/** Members that were not seen for ten seconds are given to nobody. */
const PROBE_MS = 2_000;

export interface Race {
  claims: number;
  /** Claims of a member that another sandbox has, or of which the records do not agree. */
  doubleClaims: number;
  /** Members that were given out twice, as when a probe comes in between, and claimed once. */
  refused: number;
}

const Told = z.object({ claims: z.string(), refused: z.coerce.number() });
const Claims = z.array(z.tuple([z.string(), z.string()]));

export async function raceForMembers(url: string, { claims, processes }: { claims: number; processes: number }) {
  await using stack = new AsyncDisposableStack();
  const redis = stack.adopt(connectRedis(url), closeRedis);
  const prefix = `{race-${randomBytes(4).toString("hex")}}`;
  const keys = createKeys(prefix);
  const pools = createPools(redis, keys);
  await pools.set(TEMPLATE, { min: 1, max: 10_000 });
  const members = await makeMembers(redis, keys, { count: claims + SPARE, server: await pools.server() });
  const see = () => pools.seen(TEMPLATE, members);
  await see();
  const probe = setInterval(() => void see(), PROBE_MS);
  stack.defer(() => clearInterval(probe));
  const args = [url, prefix, TEMPLATE, String(claims / processes)];
  const racers = await Promise.all(
    Array.from({ length: processes }, () => startProgram(new URL("./claimer.ts", import.meta.url), args)),
  );
  for (const racer of racers) stack.use(racer);
  const told = racers.map((racer) => Told.parse(racer.told));
  const made = told.flatMap((one) => Claims.parse(JSON.parse(one.claims)));
  const refused = told.reduce((sum, one) => sum + one.refused, 0);
  return { claims: made.length, doubleClaims: await countDoubles(redis, keys, made), refused } satisfies Race;
}

async function makeMembers(redis: RedisConnection, keys: Keys, { count, server }: { count: number; server: string }) {
  const pipeline = redis.pipeline();
  const now = Date.now();
  const ids = Array.from({ length: count }, newSandboxId);
  for (const [at, id] of ids.entries()) {
    const vmid = FIRST_VMID + at;
    const place = {
      node: "pve1",
      vmid,
      hostname: `cmux-${vmid}`,
      address: `10.${at >> 16}.${(at >> 8) % 256}.${at % 256}`,
    };
    const about = {
      id,
      operation: newOperationId(),
      team: POOL_TEAM,
      template: TEMPLATE,
      pool: TEMPLATE,
      warmOn: server,
    };
    const { set } = encodeFields({ ...about, ...place, state: "warm", stateAt: now, createdAt: now });
    pipeline.hset(keys.sandbox(id), ...set).hset(keys.vmids, vmid, id);
    pipeline.zadd(keys.sandboxes, now, id).zadd(keys.teamSandboxes(POOL_TEAM), now, id);
  }
  await pipeline.exec();
  return ids;
}

async function countDoubles(redis: RedisConnection, keys: Keys, claims: z.output<typeof Claims>): Promise<number> {
  const holders = new Map(Object.entries(await redis.hgetall(keys.vmids)));
  const owners = new Set(holders.values());
  const members = new Set(claims.map(([, member]) => member));
  let doubles = claims.length - members.size;
  const agrees = async ([sandbox = "", member = ""]: readonly string[]) => {
    const [[vmid = null, of = null] = [], [state = null, became = null] = []] = await Promise.all([
      redis.hmget(keys.sandbox(sandbox), "vmid", "member"),
      redis.hmget(keys.sandbox(member), "state", "became"),
    ]);
    const isOwner = holders.get(vmid ?? "") === sandbox && !owners.has(member);
    return isOwner && of === member && state === "claimed" && became === sandbox;
  };
  for (let at = 0; at < claims.length; at += PAGE)
    for (const one of await Promise.all(claims.slice(at, at + PAGE).map(agrees))) if (!one) doubles += 1;
  return doubles;
}
