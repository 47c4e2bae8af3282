/** What is to be done about a pool: pure. */
import type { Replica } from "../../shared/state/inventory.ts";
import type { PoolCounts, PoolSettings } from "../../shared/state/pools.ts";
import { isProvisional, type SandboxRecord } from "../../shared/state/records.ts";

/** A container gathers dust: logs grow, leases and certificates run out. */
const OLD_MS = 86_400_000;
/** A member that has not answered for so long is replaced. */
const SILENT_MS = 15_000;
/** Members for what is asked for in so many seconds, since a new one takes a few. */
const AHEAD_SEC = 10;
/** Over how long demand is averaged. */
const MEMORY_SEC = 60;
/** After the first failed making; doubles with each. */
const FAILED_MS = { first: 2_000, last: 300_000 };

export type Member = Pick<SandboxRecord, "id" | "state" | "node" | "createdAt" | "madeOf"> & {
  /** It does not answer for so long; 0: it does. */
  silentMs: number;
  /** It may be somebody's, who can't use it. */
  lost: boolean;
};

export interface PoolFacts {
  /** Undefined: the pool was removed. */
  settings: PoolSettings | undefined;
  members: readonly Member[];
  /** What its members are to be made of, by `toMadeOf`; empty: not known. */
  sources: ReadonlySet<string>;
  /** Why nodes are left out: what is there is no use just now. */
  obstacles: ReadonlyMap<string, string>;
  /** Those of them that people keep free: what is there goes. */
  isCordoned: (node: string) => boolean;
  counts: PoolCounts;
  /** How many may be in the making. */
  room: number;
  now: number;
}

export interface PoolPlan {
  make: number;
  remove: { id: SandboxRecord["id"]; why: string }[];
  target: number;
}

/** The replica that a container was cloned from, and how that was configured. */
export const toMadeOf = ({ vmid, configHash = "" }: Pick<Replica, "vmid" | "configHash">): string =>
  `${vmid} ${configHash}`;

/** What of the demand is remembered, and what has come since. */
export function averageRate({ rate, asked, seen, at }: PoolCounts, now: number): number {
  const sec = Math.max(0.001, (now - at) / 1_000);
  if (at === 0) return 0;
  const kept = Math.exp(-sec / MEMORY_SEC);
  return rate * kept + (Math.max(0, asked - seen) / sec) * (1 - kept);
}

export function planPool(facts: PoolFacts): PoolPlan {
  const { settings, members, counts, room, now } = facts;
  const standing = members.filter(({ state }) => state === "warm");
  const making = members.filter(({ state }) => isProvisional(state));
  if (settings === undefined)
    return {
      make: 0,
      target: 0,
      remove: [...standing, ...making].map(({ id }) => ({ id, why: "its pool was removed" })),
    };
  const target = Math.min(settings.max, settings.min + Math.round(counts.rate * AHEAD_SEC));
  const remove = standing.flatMap((one) => {
    const why = whyUnfit(one, facts);
    return why === null ? [] : [{ id: one.id, why }];
  });
  const fit = standing.filter(
    ({ id, node = "" }) => !facts.obstacles.has(node) && remove.every((one) => one.id !== id),
  );
  // All at once over the most; over the target one after the other, since demand comes and goes.
  const surplus = Math.max(fit.length - settings.max, Math.min(1, fit.length - target - 1), 0);
  const oldest = [...fit].sort((a, b) => a.createdAt - b.createdAt).slice(0, surplus);
  remove.push(...oldest.map(({ id }) => ({ id, why: "its pool has more than it needs" })));
  const left = target - fit.length - making.length;
  const waits = counts.failures > 0;
  const pauseMs = Math.min(FAILED_MS.last, FAILED_MS.first * 2 ** Math.min(counts.failures - 1, 20));
  const mayTry = !waits || (making.length === 0 && now - counts.failedAt >= pauseMs);
  return { make: mayTry ? Math.max(0, Math.min(left, waits ? 1 : room)) : 0, remove, target };
}

function whyUnfit(one: Member, { sources, isCordoned, obstacles, now }: PoolFacts): string | null {
  const { node = "" } = one;
  if (one.lost) return "it was ready before Redis was started, and may have been claimed in a second that is lost";
  if (isCordoned(node)) return `${node}: ${obstacles.get(node) ?? "cordoned"}`;
  if (sources.size > 0 && !sources.has(one.madeOf ?? "")) return "its template has changed";
  if (one.silentMs > SILENT_MS && !obstacles.has(node)) return "it does not answer";
  return now - one.createdAt > OLD_MS ? "it is a day old" : null;
}
