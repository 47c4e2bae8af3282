/**
 * A provision and a destroy, struck once at every boundary of a step: before a request or write is sent, on its way, and
 * after its answer. Killed there: a worker that starts later must end each as if nothing had been. Stopped there (SIGSTOP)
 * past its lock, and going on in the middle of what another run does: it must change neither the record nor PVE. The
 * latter is tried around every change; `FLEET_TEST_BOUNDARIES=all` tries it at every boundary there is. Other kinds are killed
 * between any two of their steps, or at every boundary.
 */
import { beforeAll, describe, expect, inject, test } from "vitest";
import type { Killed } from "./kill-fleet.ts";
import { boundariesOf, isPveChange, type KillCase, type Strike, strikeAt } from "./strike.ts";

/** Fleets at a time: each takeover waits for a lock to run out, so many of them cost little more than one. */
const BATCH = 30;
const redisUrl = inject("redisUrl");
const boundaries: KillCase[] = [];

beforeAll(async () => {
  for (const killed of ["provision", "destroy"] as const) boundaries.push(...(await boundariesOf(redisUrl, killed)));
});

const isAll = process.env["FLEET_TEST_BOUNDARIES"] === "all";

/** Where a run changes the record or PVE. */
const isChange = ({ boundary: { moment, edge } }: KillCase): boolean =>
  isAll || isPveChange(edge) || (moment === "before" && /^(WRITE|END|LEASE)/.test(edge));

/** Before and after each change of PVE, and after each of the record: between any two steps. */
const isOfStep = ({ boundary: { moment, edge } }: KillCase): boolean =>
  isAll || isPveChange(edge) || (moment === "after" && /^(CLAIM|WRITE|END|LEASE|moveToFinished|take)/.test(edge));

async function strikeAll(how: Strike, cases: readonly KillCase[]): Promise<void> {
  const problems: string[] = [];
  for (let at = 0; at < cases.length; at += BATCH)
    problems.push(...(await strikeAt(redisUrl, how, cases.slice(at, at + BATCH))));
  console.log(`${how} at ${cases.length} boundaries`);
  expect(problems).toEqual([]);
}

/** A claim is over in one write; what comes around it is all there is. */
const between = async (killed: Killed) =>
  (await boundariesOf(redisUrl, killed)).filter((one) => killed === "claim" || killed === "tidy" || isOfStep(one));

describe("between any two steps of the other kinds", { timeout: 600_000 }, () => {
  test("killed: each ends well, once", async () => {
    const kinds = [
      "build",
      "snapshot",
      "restore",
      "migrate",
      "template",
      "copy",
      "tidy",
      "untake",
      "replicate",
      "fill",
      "claim",
    ] as const;
    const cases: KillCase[] = [];
    for (const kind of kinds) cases.push(...(await between(kind)));
    await strikeAll("kill", cases);
  });

  test("killed: each replica by way of an archive ends well, once", async () => {
    await strikeAll("kill", await between("archive"));
  });
});

// One after the other: each runs dozens of fleets.
describe("at the boundaries of a provision and a destroy", { timeout: 600_000 }, () => {
  test("killed: each ends well, once", () => strikeAll("kill", boundaries));

  test("stopped past its lock while another worker takes the job: the old run does nothing more", () =>
    strikeAll("stop", boundaries.filter(isChange)));

  test("stopped past its lock, and the same process takes the job again: only the new run goes on", () =>
    strikeAll("stop-alone", boundaries.filter(isChange)));
});
