/**
 * A provision and a destroy, killed once at every boundary of a step: before a request or write is sent, on its way, and
 * after its answer. A restarted worker must end each as if nothing had been.
 */
import { expect, inject, test } from "vitest";
import { boundariesOf, type KillCase, strikeAt } from "./strike.ts";

/** Fleets at a time: each takeover waits for a lock to run out, so many of them cost little more than one. */
const BATCH = 30;

test("killed at every boundary of a provision and a destroy, each ends well, once", { timeout: 240_000 }, async () => {
  const redisUrl = inject("redisUrl");
  const cases: KillCase[] = [];
  for (const killed of ["provision", "destroy"] as const) cases.push(...(await boundariesOf(redisUrl, killed)));
  const problems: string[] = [];
  for (let at = 0; at < cases.length; at += BATCH)
    problems.push(...(await strikeAt(redisUrl, "kill", cases.slice(at, at + BATCH))));
  console.log(`killed at ${cases.length} boundaries`);
  expect(problems).toEqual([]);
});
