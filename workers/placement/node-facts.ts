/** What each node has to do, from its queue and its reservations, and what stands in its way. */
import { type NodeLoad, toLoad } from "../../shared/placement/capacity.ts";
import type { NodeFacts } from "../../shared/placement/choose-node.ts";
import { parseReservation } from "../../shared/placement/reservation.ts";
import { nodeQueue } from "../../shared/queues.ts";
import { defineScript, runScript } from "../../shared/redis/script.ts";
import type { WorkerContext } from "../context.ts";

/** A reading this young will do for saying no: a long line must not cost a reading each. */
const YOUNG_MS = 50;
/** A node's reservations are read again after this long, also when nobody has said that they changed. */
const RESERVED_MS = 5_000;

const readings = new WeakMap<WorkerContext, { facts: NodeFacts; at: number }>();

/** `young`: read within the last 50 ms, or just now; `now`: just now. */
export async function factsOf(
  context: WorkerContext,
  want: "young" | "now",
): Promise<{ facts: NodeFacts; now: boolean }> {
  const known = readings.get(context);
  if (want === "young" && known && performance.now() - known.at < YOUNG_MS) return { facts: known.facts, now: false };
  const [loads, obstacles] = await Promise.all([readLoads(context), context.nodes.readObstacles()]);
  const facts = { loads, obstacles, settings: context.nodes.settings() };
  readings.set(context, { facts, at: performance.now() });
  return { facts, now: true };
}

/** Something has changed: the next one reads. */
export function forgetFacts(context: WorkerContext): void {
  readings.delete(context);
}

/**
 * In one step for all nodes: jobs of their queues that wait or run, and the count of changes of their reservations.
 * KEYS: hash of changes, then `wait`, `paused`, `prioritized` and `active` of each node's queue. ARGV: nodes. Returns both per node.
 */
const COUNT = defineScript(`
local changes = redis.call('HMGET', KEYS[1], unpack(ARGV))
local counts = {}
for index = 1, #ARGV do
  local first = 4 * index - 2
  local jobs = redis.call('LLEN', KEYS[first]) + redis.call('LLEN', KEYS[first + 1])
    + redis.call('ZCARD', KEYS[first + 2]) + redis.call('LLEN', KEYS[first + 3])
  counts[index] = { jobs, changes[index] or '0' }
end
return counts
`);

interface Known {
  changes: string;
  readAt: number;
  load: Omit<NodeLoad, "jobs">;
}

const reserved = new WeakMap<WorkerContext, Map<string, Known>>();

/** Of the reservations only those of nodes on which something has changed. */
async function readLoads(context: WorkerContext): Promise<NodeFacts["loads"]> {
  const { redis, keys, queues } = context;
  const names = context.inventory.current().nodes.map(({ name }) => name);
  const ofQueue = (name: string) =>
    ["wait", "paused", "prioritized", "active"].map((kind) => queues.get(nodeQueue(name)).toKey(kind));
  const counts = await runScript(redis, COUNT, [keys.reservedChanges, ...names.flatMap(ofQueue)], names);
  const known = reserved.get(context) ?? new Map<string, Known>();
  reserved.set(context, known);
  const now = Date.now();
  const loads = names.map(async (name, index): Promise<[string, NodeLoad]> => {
    const [jobs, changes] = (counts as [number, string][])[index] ?? [0, "0"]; // as the script returns them
    const before = known.get(name);
    if (before?.changes === changes && now - before.readAt < RESERVED_MS) return [name, { jobs, ...before.load }];
    const values = await redis.hvals(keys.reserved(name));
    const load = toLoad(values.map(parseReservation), now);
    known.set(name, { changes, readAt: now, load });
    return [name, { jobs, ...load }];
  });
  return new Map(await Promise.all(loads));
}
