import { expect, test } from "vitest";
import { simulate } from "../../simulate/simulate.ts";

const small = { nodes: 6, sandboxes: 300, seed: 3 };

test("a simulated cluster keeps its limits; spreading is even, packing leaves nodes empty", () => {
  const spread = simulate({ ...small, policy: "spread" });
  expect(spread).toMatchObject({ placed: 300, overLimit: 0, nodesUsed: 6 });
  expect(spread.memory.sd).toBeLessThan(0.1);
  const pack = simulate({ ...small, policy: "pack" });
  expect(pack).toMatchObject({ placed: 300, overLimit: 0 });
  expect(pack.nodesUsed).toBeLessThan(6);
});

test("the same seed gives the same cluster", () => {
  const figures = () => ({ ...simulate({ ...small, policy: "spread" }), placementMs: undefined });
  expect(figures()).toEqual(figures());
});
