/** Nodes that were started anew, and what ran on them until then: it is marked, until it has been seen to run again. */
import { NodeName } from "../../shared/ids.ts";
import type { Standing } from "../../shared/state/standing.ts";
import type { WorkerContext } from "../context.ts";
import type { ClusterResource } from "../pve/api.ts";
import type { Round } from "./round.ts";

/** Clocks, and an uptime that is some seconds old. */
const BOOT_SKEW_MS = 30_000;
/** A mark outlives the time in which a second start counts as the first: what that one stops is started again, too. */
const MARKED_AT_LEAST_MS = 2 * BOOT_SKEW_MS;
/** What would not start for so long stays as it is. */
const MARKED_AT_MOST_MS = 3_600_000;
/** Of a node whose uptime the token may not see: rounds that missed it for so long may have missed its start. */
const AWAY_MS = 30_000;
/** Whole seconds, and the time that the list takes; a node needs longer to go down and come up. */
const UPTIME_SKEW_MS = 5_000;
/** A node that stops all its containers has so long to go down; else somebody stopped them for good. */
export const GOING_DOWN_MS = 900_000;

export type NodesByName = ReadonlyMap<string, ClusterResource>;

export interface Boots {
  /** Sandboxes that are to be started again. */
  readonly marked: ReadonlySet<string>;
  /** When a node was started last, ms since the epoch. */
  at(node: NodeName): number;
  /** What ran there and does not may be let go of. */
  isLongAgo(node: NodeName): boolean;
  /** What ran there and does again may be let go of. */
  isPast(node: NodeName): boolean;
}

/** PVE shows a node's uptime, and others' tasks on it, to those with Sys.Audit alone. */
export const isAudited = (nodes: NodesByName, node: NodeName): boolean => nodes.get(node)?.uptime !== undefined;

export async function noteBoots(
  context: WorkerContext,
  records: readonly Standing[],
  nodes: NodesByName,
  round: Round,
): Promise<Boots> {
  const { redis, keys, log } = context;
  const { now, dryRun } = round;
  const [known, seen, halts] = await Promise.all([
    redis.hgetall(keys.boots),
    redis.hgetall(keys.nodesSeen),
    redis.zrange(keys.halted, 0, "-1", "WITHSCORES"),
  ]);
  const boots = new Map(Object.entries(known).map(([node, at]) => [node, Number(at)]));
  const halted = new Map(halts.flatMap((id, at) => (at % 2 === 0 ? [[id, Number(halts[at + 1])] as const] : [])));
  for (const [node, { uptime, status }] of dryRun ? [] : nodes) {
    const before = boots.get(node);
    const last = Number(seen[node] ?? now);
    if (status !== "online" || uptime === 0) {
      // Negative: it was seen to be away since.
      if (last > 0 && status !== "online") await redis.hset(keys.nodesSeen, node, -last);
      continue;
    }
    const at = uptime === undefined ? now : now - uptime * 1_000;
    const wasAway = uptime === undefined && (last < 0 || now - last > AWAY_MS);
    const isAnew = wasAway || (uptime !== undefined && at - (before ?? 0) > BOOT_SKEW_MS);
    if (before !== undefined && !isAnew) continue;
    if (before !== undefined && wasAway && (await ranThrough(context, NodeName.parse(node), Math.abs(last), round)))
      continue;
    const wentDown = (id: string) => (halted.get(id) ?? 0) > Math.abs(last) - GOING_DOWN_MS;
    const ran = records.flatMap((one) =>
      one.node === node && (one.state === "running" || (one.state === "stopped" && wentDown(one.id))) ? [one.id] : [],
    );
    if (before !== undefined && ran.length > 0) {
      await redis.sadd(keys.restarts, ...ran);
      log.warn({ node, sandboxes: ran.length }, "node was started anew; what ran there is started again");
    }
    await redis.hset(keys.boots, node, at);
    boots.set(node, at);
  }
  if (!dryRun) await forgetHalts({ redis, keys }, records, { halted, nodes, now });
  const at = (node: string) => boots.get(node) ?? 0;
  return {
    marked: new Set(await redis.smembers(keys.restarts)),
    at,
    isLongAgo: (node) => now - at(node) > MARKED_AT_MOST_MS,
    isPast: (node) => now - at(node) > MARKED_AT_LEAST_MS,
  };
}

/** A container that has run since before then: its node has not gone down. Its uptime is live, and seen by who sees the container. */
async function ranThrough(
  { pve, log }: WorkerContext,
  node: NodeName,
  since: number,
  { signal }: Round,
): Promise<boolean> {
  try {
    const containers = await pve.list(node, { signal });
    return containers.some(({ uptime = 0 }) => Date.now() - uptime * 1_000 < since - UPTIME_SKEW_MS);
  } catch (error) {
    signal.throwIfAborted();
    log.warn({ node, err: error }, "whether anything ran through a node's absence can't be seen");
    return false;
  }
}

/** Their nodes are there, and have not gone down. */
async function forgetHalts(
  { redis, keys }: Pick<WorkerContext, "redis" | "keys">,
  records: readonly Standing[],
  { halted, nodes, now }: { halted: ReadonlyMap<string, number>; nodes: NodesByName; now: number },
): Promise<void> {
  if (halted.size === 0) return;
  const away = new Set<string>(records.flatMap(({ id, node }) => (nodes.get(node)?.status === "online" ? [] : [id])));
  const over = [...halted].flatMap(([id, at]) => (now - at > GOING_DOWN_MS && !away.has(id) ? [id] : []));
  if (over.length > 0) await redis.zrem(keys.halted, ...over);
}

/** At the end of a round, which may be long: how far the next one is behind it is what counts. */
export async function noteSeen({ redis, keys }: WorkerContext, nodes: NodesByName): Promise<void> {
  const online = [...nodes].flatMap(([node, { status }]) => (status === "online" ? [node, Date.now()] : []));
  if (online.length > 0) await redis.hset(keys.nodesSeen, ...online);
}
