/**
 * What a provision takes from enqueue to the result in the producer's hand, on PVE's real timings, and what it asks of PVE:
 * the short version of `npm run bench -- provision`, with room for a busy machine and a stand-in in this very process.
 */
import { afterAll, beforeAll, expect, test } from "vitest";
import { idealMs } from "../../bench/ideal.ts";
import { countRequests, pveShareOf } from "../../bench/record.ts";
import { type Bed, provisionOne, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  const templates = [1, 2, 3].flatMap((node) =>
    [1, 2].map((copy) => ({ node: `pve${node}`, vmid: 9_000 + 10 * node + copy })),
  );
  bed = await startBed({ pve: { nodes: 3, templates, timings: { timeScale: 1, apiScale: 1 } } });
});
afterAll(() => bed.close());

const ROUNDS = 20;
const BULK = 36;

/** Requests since the log was this long, the inventory's apart. */
const requestsSince = (length: number) =>
  [...countRequests(bed.pve.log().slice(length)).values()].reduce((sum, count) => sum + count, 0);

test("twenty provisions one at a time take at most two seconds each (median)", { timeout: 120_000 }, async () => {
  const took: number[] = [];
  const asked: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const known = bed.pve.log().length;
    const begun = performance.now();
    await provisionOne(bed.fleet, { services: [{ name: "web", port: 8_000 }] });
    took.push(performance.now() - begun);
    asked.push(requestsSince(known));
  }
  took.sort((a, b) => a - b);
  const median = ((took[ROUNDS / 2 - 1] ?? 0) + (took[ROUNDS / 2] ?? 0)) / 2;
  const most = took[ROUNDS - 1] ?? 0;
  console.log(`provision: median ${Math.round(median)} ms, slowest ${Math.round(most)} ms of ${ROUNDS}`);
  // 1.90 s is what is promised; 2.00 s where the machine is slow.
  expect(median).toBeLessThanOrEqual(2_000);
  // Faster than PVE's own tasks it can't be: then something was not waited for.
  expect(median).toBeGreaterThan(1_700);
  // The first ones teach how long tasks take.
  const known = asked.slice(5);
  expect(known.reduce((sum, count) => sum + count, 0) / known.length).toBeLessThanOrEqual(14);
});

test("a bulk keeps all slots busy and asks PVE at most ten times a provision", { timeout: 60_000 }, async () => {
  const known = bed.pve.log().length;
  const begun = performance.now();
  const made = await Promise.all(Array.from({ length: BULK }, () => provisionOne(bed.fleet)));
  const tookMs = performance.now() - begun;
  const requests = requestsSince(known) / BULK;
  const shares = made.map(({ vmid }) => pveShareOf(vmid, bed.pve.log(), bed.pve.tasks()));
  const ideal = idealMs(shares, { nodes: 3, slots: 4, replicas: 2 });
  console.log(`bulk of ${BULK}: ${(tookMs / ideal).toFixed(3)} of its ideal, ${requests.toFixed(1)} requests each`);
  expect(requests).toBeLessThanOrEqual(10);
  // 1.15 is what is promised, for a bulk of 60; a node that makes one more than the others alone would cost 1.33.
  expect(tookMs / ideal).toBeLessThanOrEqual(1.3);
  expect(tookMs / ideal).toBeGreaterThan(1);
});
