/** What stands in the way of a node: cordons, set by people, and circuit breakers, set by what PVE's answers tell. */
import { z } from "zod";
import { FleetError } from "../errors.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { defineScript, runScript } from "../redis/script.ts";
import type { Keys } from "./keys.ts";

/** Nobody places anything new on the node until somebody takes this back. Times are ms since the epoch. */
export const Cordon = z.object({ at: z.number(), by: z.string(), reason: z.string().optional() });
export type Cordon = z.output<typeof Cordon>;

/** A node without one is closed and clean. */
export const Breaker = z.discriminatedUnion("state", [
  /** Transport failures in a row, the first at `since`. */
  z.object({ state: z.literal("closed"), failures: z.number().int(), since: z.number() }),
  /** No request goes to the node until a probe, from `until` on. `times`: openings in a row. */
  z.object({ state: z.literal("open"), since: z.number(), until: z.number(), times: z.number().int() }),
  /** One probe is under way; one that never reports is given up at `until`. */
  z.object({
    state: z.literal("half_open"),
    since: z.number(),
    until: z.number(),
    times: z.number().int(),
    probe: z.string(),
  }),
]);
export type Breaker = z.output<typeof Breaker>;

export const NodeLabel = z
  .string()
  .regex(
    /^[a-zA-Z0-9][a-zA-Z0-9_.=-]{0,62}$/,
    "must be 1 to 63 letters, digits, '_', '.', '=' or '-', such as gpu or zone=a",
  );

/** What operators have set for one node; what is absent is as the workers' configuration says. */
export const NodeSettings = z.strictObject({
  labels: z.array(NodeLabel).max(32).optional(),
  /** Sandboxes of ours on it at most. */
  maxSandboxes: z.number().int().min(0).max(100_000).optional(),
  memoryOvercommit: z.number().min(0.1).max(20).optional(),
  diskOvercommit: z.number().min(0.1).max(50).optional(),
});
export type NodeSettings = z.output<typeof NodeSettings>;

export interface NodeStates {
  cordons: ReadonlyMap<string, Cordon>;
  breakers: ReadonlyMap<string, Breaker>;
  settings: ReadonlyMap<string, NodeSettings>;
}

/** Why no new sandbox goes to a node, by node, for people. Pure. */
export function toObstacles({ cordons, breakers }: Omit<NodeStates, "settings">): ReadonlyMap<string, string> {
  const obstacles = new Map<string, string>();
  for (const [node, { state }] of breakers) if (state !== "closed") obstacles.set(node, "its circuit breaker is open");
  for (const [node, { reason }] of cordons)
    obstacles.set(node, reason === undefined ? "cordoned" : `cordoned (${reason})`);
  return obstacles;
}

/** Sets or deletes a field if it is as it was read, and says so. KEYS: hash. ARGV: field, before, after ('' is none), channel. */
const SWAP = defineScript(`
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('PUBLISH', ARGV[4], 'node '..ARGV[1])
return 1
`);

/** Many may see a node fail at once; each try loses only to one that got through. */
const SWAP_TRIES = 20;

export interface NodeStateStore {
  load(): Promise<NodeStates>;
  /** Null takes it back. Returns what there was before. */
  setCordon(node: string, cordon: Cordon | null): Promise<Cordon | null>;
  /** Atomic, as `changeBreaker`. Null takes all of them back. Returns what stands then. */
  changeSettings(
    node: string,
    change: (before: NodeSettings | null) => NodeSettings | null,
  ): Promise<NodeSettings | null>;
  /** Atomic: `change` sees what is replaced, and is asked again when somebody was faster. Returns what stands then. */
  changeBreaker(node: string, change: (before: Breaker | null) => Breaker | null): Promise<Breaker | null>;
}

export function createNodeStateStore(redis: RedisConnection, keys: Keys): NodeStateStore {
  const swap = async (key: string, node: string, before: string, after: string) =>
    (await runScript(redis, SWAP, [key], [node, before, after, keys.wake])) === 1;
  /** Returns what was replaced and what stands. */
  const change = async <T>(key: string, schema: z.ZodType<T>, node: string, decide: (before: T | null) => T | null) => {
    for (let tries = 0; tries < SWAP_TRIES; tries++) {
      const text = (await redis.hget(key, node)) ?? "";
      const before = parse(schema, text);
      const after = decide(before);
      if (after === before) return { before, after };
      if (await swap(key, node, text, after === null ? "" : JSON.stringify(after))) return { before, after };
    }
    throw new FleetError("redis_unavailable", `the state of node ${node} changes too fast`, { facts: { node } });
  };
  return {
    async load() {
      const hashes = [keys.cordons, keys.breakers, keys.nodeSettings];
      const [cordons = {}, breakers = {}, settings = {}] = await Promise.all(hashes.map((key) => redis.hgetall(key)));
      return {
        cordons: parseAll(Cordon, cordons),
        breakers: parseAll(Breaker, breakers),
        settings: parseAll(NodeSettings, settings),
      };
    },
    setCordon: async (node, cordon) => (await change(keys.cordons, Cordon, node, () => cordon)).before,
    changeSettings: async (node, decide) => (await change(keys.nodeSettings, NodeSettings, node, decide)).after,
    changeBreaker: async (node, decide) => (await change(keys.breakers, Breaker, node, decide)).after,
  };
}

/** Null for what is missing or was written by another version. */
function parse<T>(schema: z.ZodType<T>, text: string): T | null {
  try {
    return schema.safeParse(JSON.parse(text)).data ?? null;
  } catch {
    return null;
  }
}

function parseAll<T>(schema: z.ZodType<T>, hash: Readonly<Record<string, string>>): Map<string, T> {
  const entries = Object.entries(hash).flatMap(([node, text]): [string, T][] => {
    const value = parse(schema, text);
    return value === null ? [] : [[node, value]];
  });
  return new Map(entries);
}
