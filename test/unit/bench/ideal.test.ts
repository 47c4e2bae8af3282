import { expect, test } from "vitest";
import { idealMs } from "../../bench/ideal.ts";

const share = (at: number, more: object = {}) => ({
  at,
  cloneMs: 300,
  configureMs: 50,
  startMs: 1_500,
  readyMs: 5,
  ...more,
});
const shares = (count: number) => Array.from({ length: count }, (_, at) => share(at));

test("one provision takes its steps", () => {
  expect(idealMs([share(0)], { nodes: 3, slots: 4, replicas: 2 })).toBe(1_855);
});

test("two replicas: the third clone waits for the first, its start does not", () => {
  expect(idealMs(shares(2), { nodes: 1, slots: 4, replicas: 2 })).toBe(1_855);
  expect(idealMs(shares(3), { nodes: 1, slots: 4, replicas: 2 })).toBe(2_155);
});

test("slots: sixty on three nodes are five after each other, and the second pair of each node begins a clone later", () => {
  expect(idealMs(shares(60), { nodes: 3, slots: 4, replicas: 2 })).toBe(300 + 5 * 1_850 + 5);
});

test("a slow one holds up its own slot alone", () => {
  expect(idealMs([share(0, { startMs: 9_000 }), ...shares(4)], { nodes: 1, slots: 2, replicas: 2 })).toBe(9_355);
});
