import { expect, test } from "vitest";
import { growth, isFlat, toFamily } from "../../soak/families.ts";

test("keys of one kind are a family, whatever their ids", () => {
  const names = [
    "op:op_1",
    "events",
    "node-pve1:op_1.2",
    "node-pve1:op_1:lock",
    "place:completed",
    "exec-pve1",
    "webhook-app:evt_1-2",
  ];
  expect(names.map((name) => toFamily(`{f}:${name}`, "{f}"))).toEqual([
    "op:…",
    "events",
    "a job",
    "a job's lock",
    "jobs completed",
    "job index",
    "a job",
  ]);
});

test("what grows is told from noise and from what shrinks", () => {
  const limit = { share: 0.1, floor: 10 };
  expect(growth([100, 110, 120])).toBeCloseTo(20);
  expect(isFlat([100, 110, 120], limit)).toBe(false);
  expect(isFlat([100, 130, 90, 101], limit)).toBe(true);
  expect(isFlat([200, 100, 50], limit)).toBe(true);
  expect(isFlat([0, 4, 8], limit)).toBe(true);
});
