/** What one provision takes from enqueue to the result in the producer's hand, on PVE's real timings. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, provisionOne, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 3, timings: { timeScale: 1, apiScale: 1 } } });
});
afterAll(() => bed.close());

const ROUNDS = 20;

test("twenty provisions one at a time take at most two seconds each (median)", { timeout: 120_000 }, async () => {
  const took: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const begun = performance.now();
    await provisionOne(bed.fleet, { services: [{ name: "web", port: 8_000 }] });
    took.push(performance.now() - begun);
  }
  took.sort((a, b) => a - b);
  const median = ((took[ROUNDS / 2 - 1] ?? 0) + (took[ROUNDS / 2] ?? 0)) / 2;
  const most = took[ROUNDS - 1] ?? 0;
  console.log(`provision: median ${Math.round(median)} ms, slowest ${Math.round(most)} ms of ${ROUNDS}`);
  // 1.90 s is what is promised; 2.00 s where the machine is slow.
  expect(median).toBeLessThanOrEqual(2_000);
  // Faster than PVE's own tasks it can't be: then something was not waited for.
  expect(median).toBeGreaterThan(1_700);
});
