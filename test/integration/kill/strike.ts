/** Strikes many fleets at once, each at a boundary of its own, and tells what of the promises is broken afterwards. */
import type { Handle, JobName } from "../../../producers/index.ts";
import type { RedisConnection } from "../../../shared/redis/connect.ts";
import { createKeys } from "../../../shared/state/keys.ts";
import type { FaultHandle, Timings } from "../../pve/index.ts";
import { until } from "../fleet/until.ts";
import { activeJobs, type Batch, begin, lateRequest, startBatch, startSurvivors } from "./batch.ts";
import type { Boundary } from "./edges.ts";
import { isOf, type Killed, type KillFleet } from "./kill-fleet.ts";
import { brokenPromises } from "./promise.ts";

export interface KillCase {
  killed: Killed;
  boundary: Boundary;
}

/**
 * `kill`: SIGKILL, and workers that start afterwards go on. `stop`: SIGSTOP until other workers have taken over, then
 * SIGCONT. `stop-alone`: SIGSTOP past the lock, then SIGCONT, and the same process takes its jobs again.
 */
export type Strike = "kill" | "stop" | "stop-alone";

/** Every boundary of an operation, of a task that is asked about again and again the first. */
export async function boundariesOf(redisUrl: string, killed: Killed): Promise<KillCase[]> {
  // Members of pools are looked at by time, so that only the first look is sure to come.
  const repeated = killed === "claim" ? /#/ : /^GET task .*#/;
  const all = (await listEdges(redisUrl, killed)).filter((edge) => !repeated.test(edge));
  // Of the clockwork that asks; what came before is the copy's own.
  const edges = killed === "tidy" ? all.filter((edge) => /^(lrange changes|ACCEPT)$/.test(edge)) : all;
  return [
    ...edges.flatMap((edge) =>
      (["before", "after"] as const).map((moment) => ({ killed, boundary: { moment, edge } })),
    ),
    // PVE may execute a request late whose sender has died: what a rollback or a conversion then finds is not tried here.
    ...edges
      .filter((edge) => (killed === "provision" || killed === "destroy") && isPveChange(edge))
      .map((edge) => ({ killed, boundary: { moment: "sent" as const, edge } })),
  ];
}

/** A request that changes a container. */
export const isPveChange = (edge: string): boolean => /^(POST|PUT|DELETE) /.test(edge);

/** For a busy machine; by itself a recovery takes ten seconds: a lock of 6 s, two stalled checks, a sweep, what is left to do. */
const RECOVERY_MS = 120_000;
/** So that a run which comes back meets its successor in the middle of things. */
const SLOW: Partial<Timings> = { cloneLinked: 10_000, start: 20_000, destroy: 20_000 };

/** The edges of an operation that nothing happens to, in their order. */
async function listEdges(redisUrl: string, killed: Killed): Promise<string[]> {
  await using batch = await startBatch(redisUrl, [{ killed, hold: null }], { scope: "fleet" });
  const [one] = batch.fleets;
  if (!one) throw new Error("no fleet");
  const { handle } = await begin(one, batch.redis);
  await handle.result({ timeoutMs: 60_000 });
  // BullMQ's own end of the job comes after ours.
  await until(() => batch.edges.some((edge) => edge.startsWith("moveToFinished")) && batch.edges, "the job's end");
  await until(async () => (await activeJobs(batch.redis, one.prefix)) === 0, "the job's end");
  await settled(one, handle, batch.redis);
  return batch.edges;
}

/** The stamp follows a claim within seconds, and a branch's snapshot goes after it. */
async function settled(
  { killed, pve, prefix }: KillFleet,
  { sandboxId }: Handle<JobName>,
  redis: RedisConnection,
): Promise<void> {
  const isStamped = () => pve.containers().some(({ config }) => config["description"]?.includes(sandboxId));
  if (killed === "claim") await until(isStamped, "its stamp", RECOVERY_MS);
  if (killed !== "tidy" && killed !== "untake") return;
  const { branches, open } = createKeys(prefix);
  const isTidy = async () => (await redis.exists(branches)) === 0 && (await redis.zcard(open)) === 0;
  await until(isTidy, "the end of the branch's snapshot", RECOVERY_MS);
}

/** What is wrong afterwards, with the boundary that it came from; nothing is what should be found. */
export async function strikeAt(redisUrl: string, how: Strike, cases: readonly KillCase[]): Promise<string[]> {
  const plans = cases.map(({ killed, boundary }) => ({ killed, hold: boundary }));
  const options = how === "kill" ? { scope: "fleet" as const } : { scope: "run" as const, timings: SLOW };
  await using batch = await startBatch(redisUrl, plans, options);
  const late = new Map<KillFleet, FaultHandle>();
  const struck = await Promise.all(
    batch.fleets.map(async (one, at): Promise<Struck> => {
      const boundary = cases[at]?.boundary;
      const { handle, source } = await begin(one, batch.redis, () => {
        if (boundary?.moment === "sent") late.set(one, one.pve.faults.request(lateRequest(one, boundary.edge)));
      });
      return {
        one,
        handle,
        source,
        name: `${one.killed} ${how} ${boundary?.moment} ${boundary?.edge}`,
        untaken: false,
      };
    }),
  );
  await until(() => batch.held.size === cases.length, "every fleet at its boundary", 60_000).catch((error: unknown) => {
    const missing = struck.flatMap(({ one, name }) => (batch.held.has(one.prefix) ? [] : [name]));
    throw new Error(`never reached: ${missing.join(", ")}`, { cause: error });
  });
  await until(() => [...late.values()].every(({ hits }) => hits === 1), "every late request at PVE");
  await using _survivors = await strike(how, batch, struck);
  const found = await Promise.all(
    struck.map(async (each) => {
      const problems = await aftermath(batch, each, late.get(each.one)).catch((error: unknown) => [String(error)]);
      if (how === "kill") return problems.map((problem) => `${each.name}: ${problem}`);
      await until(() => batch.over.has(each.one.prefix), "the old run's end").catch((error) =>
        problems.push(String(error)),
      );
      const acted = each.untaken ? [] : batch.acted.filter(({ name }) => name === each.one.prefix);
      return [...problems, ...acted.map(({ edge }) => `the old run did ${edge}`)].map(
        (text) => `${each.name}: ${text}`,
      );
    }),
  );
  return found.flat();
}

interface Struck {
  readonly one: KillFleet;
  readonly handle: Handle<JobName>;
  readonly source: string | undefined;
  readonly name: string;
  /** The held run went on before another had begun: it is still the operation's own. */
  untaken: boolean;
}

async function strike(how: Strike, batch: Batch, struck: readonly Struck[]): Promise<AsyncDisposable | null> {
  const { redis, fleets } = batch;
  if (how === "kill") {
    await batch.kill();
    return startSurvivors(fleets);
  }
  const before = new Map(
    await Promise.all(struck.map(async ({ one, handle }) => [one.prefix, await claimsOf(redis, one, handle)] as const)),
  );
  const isTaken = async ({ one, handle }: Struck) => {
    const claims = await claimsOf(redis, one, handle);
    return claims === ENDED || claims > Number(before.get(one.prefix) ?? 0);
  };
  const allTaken = (some: readonly Struck[]) =>
    until(async () => (await Promise.all(some.map(isTaken))).every(Boolean), "every takeover", RECOVERY_MS);
  batch.signal("SIGSTOP");
  if (how === "stop") {
    const survivors = await startSurvivors(fleets);
    await allTaken(struck);
    // Heard before anything else when it wakes: no timer of the old run can tell it first that its lock is gone.
    batch.release(fleets.map(({ prefix }) => prefix));
    batch.signal("SIGCONT");
    return survivors;
  }
  await until(async () => (await locksOf(redis, fleets)) === 0, "the end of every lock", RECOVERY_MS);
  batch.signal("SIGCONT");
  // A process places one at a time: what is held in `place` must go on before it is taken again, and may.
  const placing = new Set(await filterAsync(struck, ({ one, handle }) => isIn(redis, one, handle, "place")));
  batch.release([...placing].map(({ one }) => one.prefix));
  for (const each of placing) each.untaken = true;
  const others = struck.filter((each) => !placing.has(each));
  await allTaken(others);
  batch.release(others.map(({ one }) => one.prefix));
  return null;
}

async function aftermath({ redis }: Batch, { one, handle, source }: Struck, held?: FaultHandle): Promise<string[]> {
  const { pve } = one;
  const result = await handle.result({ timeoutMs: RECOVERY_MS }).then(
    () => "well",
    (error: unknown) => String(error),
  );
  if (result !== "well") return [`ended with ${result}`];
  await settled(one, handle, redis);
  if (held) {
    const isLate = pve.waitForRequest(
      ({ fault, path }) => fault === "hang" && isOf(one, path),
      AbortSignal.timeout(60_000),
    );
    held.release();
    await isLate;
  }
  const usable = [
    source,
    ...(["provision", "restore", "migrate", "copy", "tidy", "untake", "claim"].includes(one.killed)
      ? [handle.sandboxId]
      : []),
  ];
  for (const sandboxId of usable.filter((id) => id !== undefined)) {
    const exec = await one.fleet.exec({ sandboxId, command: "true" });
    await exec.result({ timeoutMs: RECOVERY_MS });
  }
  await until(async () => (await activeJobs(redis, one.prefix)) === 0, `the jobs of ${one.prefix}`, RECOVERY_MS);
  const quiet = () => pve.tasks().every(({ endedAt }) => endedAt !== undefined);
  await until(quiet, "quiet at PVE", RECOVERY_MS);
  return brokenPromises({ one, handle, redis, late: held !== undefined });
}

const ENDED = "ended";

/** Runs begun. */
async function claimsOf(
  redis: RedisConnection,
  one: KillFleet,
  { id }: Handle<JobName>,
): Promise<number | typeof ENDED> {
  const [claims, endedAt] = await redis.hmget(createKeys(one.prefix).operation(id), "claims", "endedAt");
  return endedAt ? ENDED : Number(claims);
}

async function isIn(redis: RedisConnection, one: KillFleet, { id }: Handle<JobName>, queue: string): Promise<boolean> {
  return (await redis.hget(createKeys(one.prefix).operation(id), "queue")) === queue;
}

/** Locks of jobs that the stopped process holds. */
async function locksOf(redis: RedisConnection, fleets: readonly KillFleet[]): Promise<number> {
  const counts = await Promise.all(fleets.map(({ prefix }) => redis.keys(`${prefix}:*:op_*:lock`)));
  return counts.flat().length;
}

async function filterAsync<T>(all: readonly T[], fits: (one: T) => Promise<boolean>): Promise<T[]> {
  const fitting = await Promise.all(all.map(fits));
  return all.filter((_, at) => fitting[at]);
}
