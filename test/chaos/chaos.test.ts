/** A minute of chaos; `npm run chaos` has the long one. */
import { expect, test } from "vitest";
import { FAULT_KINDS } from "./plan.ts";
import { countWrongs, runChaos } from "./run.ts";

test("a minute in which everything breaks: nothing lost, doubled, leaked, stuck, over a limit or quarantined", async () => {
  const lines: string[] = [];
  const report = await runChaos({
    seed: 7,
    operations: 1_000,
    workers: 3,
    minutes: 0.45,
    ssh: true,
    kinds: new Set(FAULT_KINDS),
    logs: undefined,
    log: (line) => lines.push(line),
  });
  const { findings, succeeded, faults, operations } = report;
  expect(countWrongs(report), [...lines, JSON.stringify(report)].join("\n")).toBe(0);
  expect(findings.odd.filter((line) => line.includes("was not told"))).toEqual([]);
  // It was one: work was done, and most kinds of fault met it.
  expect(succeeded).toBeGreaterThan(operations / 2);
  expect(Object.keys(faults).length).toBeGreaterThan(5);
});
