/**
 * A worker that is stopped (SIGSTOP) past its lock and goes on later, in the middle of a provision or destroy that another
 * run has taken over: it must change neither the record nor PVE. Here around every change; `FLEET_TEST_BOUNDARIES=all`
 * stops it at every boundary there is.
 */
import { expect, inject, test } from "vitest";
import { boundariesOf, isPveChange, type KillCase, type Strike, strikeAt } from "./strike.ts";

const BATCH = 40;
const isAll = process.env["FLEET_TEST_BOUNDARIES"] === "all";

/** Where a run is about to change something, or has just been told that it may. */
const isTelling = ({ boundary: { moment, edge } }: KillCase): boolean =>
  isAll || isPveChange(edge) || (moment === "before" && /^(WRITE|END|LEASE|CLAIM|take|release)/.test(edge));

async function stopEverywhere(how: Strike): Promise<void> {
  const redisUrl = inject("redisUrl");
  const cases: KillCase[] = [];
  for (const killed of ["provision", "destroy"] as const)
    cases.push(...(await boundariesOf(redisUrl, killed)).filter(isTelling));
  const problems: string[] = [];
  for (let at = 0; at < cases.length; at += BATCH)
    problems.push(...(await strikeAt(redisUrl, how, cases.slice(at, at + BATCH))));
  console.log(`stopped at ${cases.length} boundaries`);
  expect(problems).toEqual([]);
}

test(
  "stopped past its lock while another worker takes the job: the old run does nothing more",
  { timeout: 240_000 },
  () => stopEverywhere("stop"),
);

test(
  "stopped past its lock, and the same process takes the job again: only the new run goes on",
  { timeout: 240_000 },
  () => stopEverywhere("stop-alone"),
);
