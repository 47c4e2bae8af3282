/**
 * A provision and a destroy, killed once at every boundary of a step: before a request or write is sent, on its way, and
 * after its answer. A restarted worker must end each as if nothing had been.
 */
import { expect, inject, test } from "vitest";
import { type KillCase, killAt, listEdges } from "./batch.ts";
import type { Killed } from "./kill-fleet.ts";

/** Fleets at a time: each takeover waits for a lock to run out, so many of them cost little more than one. */
const BATCH = 30;

/** Every boundary, of tasks that are asked about again and again the first. */
function boundariesOf(killed: Killed, edges: readonly string[]): KillCase[] {
  const once = edges.filter((edge) => !/^GET task .*#/.test(edge));
  const changes = once.filter((edge) => /^(POST|PUT|DELETE) (?!execd)/.test(edge));
  return [
    ...once.flatMap((edge) => (["before", "after"] as const).map((moment) => ({ killed, boundary: { moment, edge } }))),
    ...changes.map((edge) => ({ killed, boundary: { moment: "sent" as const, edge } })),
  ];
}

test("killed at every boundary of a provision and a destroy, each ends well, once", { timeout: 240_000 }, async () => {
  const redisUrl = inject("redisUrl");
  const cases: KillCase[] = [];
  for (const killed of ["provision", "destroy"] as const) {
    // The first time Redis does not know the scripts yet.
    const edges = await listEdges(redisUrl, killed);
    cases.push(...boundariesOf(killed, edges));
  }
  const problems: string[] = [];
  for (let at = 0; at < cases.length; at += BATCH) {
    const begun = performance.now();
    problems.push(...(await killAt(redisUrl, cases.slice(at, at + BATCH))));
    console.log(`${at} of ${cases.length}: ${Math.round(performance.now() - begun)} ms`);
  }
  expect(problems).toEqual([]);
});
