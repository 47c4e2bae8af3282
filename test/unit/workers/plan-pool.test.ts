import { expect, test } from "vitest";
import { NodeName, newSandboxId } from "../../../shared/ids.ts";
import { PoolCounts } from "../../../shared/state/pools.ts";
import { averageRate, type Member, type PoolFacts, planPool } from "../../../workers/pool/plan.ts";

const NOW = 10_000_000_000;
const NODE = NodeName.parse("pve1");
const SOURCE = "9001 abc";

const member = (about: Partial<Member> = {}): Member => ({
  id: newSandboxId(),
  state: "warm",
  node: NODE,
  createdAt: NOW - 1_000,
  madeOf: SOURCE,
  silentMs: 0,
  lost: false,
  ...about,
});
const many = (count: number, about: Partial<Member> = {}) => Array.from({ length: count }, () => member(about));
const plan = ({ counts, ...facts }: Partial<Omit<PoolFacts, "counts">> & { counts?: object } = {}) =>
  planPool({
    settings: { min: 2, max: 6 },
    members: [],
    sources: new Set([SOURCE]),
    obstacles: new Map(),
    isCordoned: () => false,
    room: 10,
    now: NOW,
    ...facts,
    counts: PoolCounts.parse(counts ?? {}),
  });
const whys = (facts: Parameters<typeof plan>[0]) => plan(facts).remove.map(({ why }) => why);

test("it is filled up to its least, and as demand asks up to its most, within the room there is", () => {
  expect(plan()).toEqual({ make: 2, remove: [], target: 2 });
  expect(plan({ members: [...many(1), member({ state: "cloning" })] }).make).toBe(0);
  expect(plan({ counts: { rate: 0.2 } }).target).toBe(4);
  expect(plan({ counts: { rate: 50 } })).toMatchObject({ target: 6, make: 6 });
  expect(plan({ counts: { rate: 50 }, room: 3 }).make).toBe(3);
  expect(plan({ room: -1 }).make).toBe(0);
});

test("what can't be made is tried one at a time, after a pause that doubles", () => {
  const counts = { failures: 3, failedAt: NOW - 7_999 };
  expect(plan({ counts }).make).toBe(0);
  expect(plan({ counts, now: NOW + 1 }).make).toBe(1);
  expect(plan({ counts, now: NOW + 1, members: [member({ state: "placing" })] }).make).toBe(0);
  expect(plan({ counts: { failures: 99, failedAt: NOW - 299_999 } }).make).toBe(0);
  expect(plan({ counts: { failures: 99, failedAt: NOW - 300_000 } }).make).toBe(1);
});

test("members go that nobody is to have: of an older template, silent, a day old, on a cordoned node, perhaps claimed", () => {
  expect(whys({ members: many(2) })).toEqual([]);
  expect(whys({ members: [member({ madeOf: "9001 older" })] })).toEqual(["its template has changed"]);
  expect(whys({ members: [member({ madeOf: "9001 older" })], sources: new Set() })).toEqual([]);
  expect(whys({ members: [member({ silentMs: 15_001 }), member({ silentMs: 15_000 })] })).toEqual([
    "it does not answer",
  ]);
  expect(whys({ members: [member({ createdAt: NOW - 86_400_001 })] })).toEqual(["it is a day old"]);
  expect(whys({ members: [member({ lost: true })] })).toHaveLength(1);
  const cordoned = { obstacles: new Map([["pve1", "cordoned (new disk)"]]), isCordoned: () => true };
  expect(whys({ members: [member()], ...cordoned })).toEqual(["pve1: cordoned (new disk)"]);
  expect(plan({ members: many(2), ...cordoned }).make).toBe(2);
});

test("those on a node that does not answer stay, and are made up for elsewhere meanwhile", () => {
  const obstacles = new Map([["pve1", "its circuit breaker is open"]]);
  expect(plan({ members: many(2, { silentMs: 60_000 }), obstacles })).toMatchObject({ make: 2, remove: [] });
});

test("over its most all that are too many go at once, over its target one after the other, the oldest first", () => {
  expect(plan({ members: many(3) }).remove).toEqual([]);
  const [old, ...others] = [member({ createdAt: NOW - 5_000 }), ...many(3)];
  expect(plan({ members: [...others, ...(old ? [old] : [])] }).remove).toMatchObject([{ id: old?.id }]);
  expect(plan({ members: many(9) }).remove).toHaveLength(3);
});

test("a pool that is gone keeps none, not even those in the making", () => {
  const members = [member(), member({ state: "cloning" }), member({ state: "destroying" })];
  expect(plan({ settings: undefined, members })).toMatchObject({ make: 0, target: 0, remove: { length: 2 } });
});

test("demand is averaged over a minute", () => {
  const counts = PoolCounts.parse({ asked: 120, seen: 0, rate: 0, at: NOW - 60_000 });
  expect(averageRate(counts, NOW)).toBeCloseTo(2 * (1 - Math.exp(-1)));
  expect(averageRate(PoolCounts.parse({ asked: 5 }), NOW)).toBe(0);
  expect(averageRate(PoolCounts.parse({ ...counts, asked: 0, rate: 1 }), NOW)).toBeCloseTo(Math.exp(-1));
});
