/** Batches on a whole fleet: their policy is the workers' business, whoever asked for them is long gone. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { BatchJob } from "../../../producers/index.ts";
import { type Bed, provisionOne, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  // SSH: what is canceled in its clone may leave a lock that only root on the node can remove.
  bed = await startBed({ pve: { nodes: 1 }, ssh: {}, env: { FLEET_NODE_SLOTS: "2" } });
});
afterAll(() => bed.close());

const PATIENCE = { timeoutMs: 40_000 };
const provision: BatchJob = { kind: "provision", input: { template: "cmux-base" } };
const bad: BatchJob = { kind: "provision", input: { template: "no-such-template", priority: "interactive" } };

/** Closed at once after asking, as by a crash. */
async function ask(...args: Parameters<Bed["fleet"]["batch"]>): Promise<string> {
  const producer = bed.client();
  const { id } = await producer.batch(...args);
  await producer.close();
  return id;
}

test("keep: what fails is counted by its code, the rest is made", async () => {
  const batch = await bed.fleet.batch([provision, bad, provision, provision, bad]);
  const done = await batch.result(PATIENCE);
  expect(done).toMatchObject({ status: "ended", counts: { total: 5, succeeded: 3, failed: 2 } });
  expect(done.counts.failedByCode).toEqual({ template_not_found: 2 });
  const outcomes = new Map<number, string>();
  for await (const one of batch.results()) outcomes.set(one.index, one.ok ? one.kind : one.error.code);
  expect([0, 1, 2, 3, 4].map((index) => outcomes.get(index))).toEqual([
    "provision",
    "template_not_found",
    "provision",
    "provision",
    "template_not_found",
  ]);
});

test("stop: what has not begun is canceled at once, what runs ends well", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  const runs = { kind: "exec" as const, input: { sandboxId, command: "sleep 1; echo done" } };
  const id = await ask([runs, ...Array.from({ length: 40 }, () => provision), bad], { policy: "stop" });
  const batch = await bed.fleet.batches.get(id);
  const done = await batch.result(PATIENCE);
  expect(done).toMatchObject({ reason: { code: "canceled", facts: { batch: id } }, counts: { failed: 1 } });
  expect(done.counts.canceled).toBeGreaterThan(20);
  for await (const one of batch.results()) if (one.index === 0) expect(one).toMatchObject({ ok: true });
});

test("undo: everything that was made is destroyed, once", async () => {
  const before = (await bed.fleet.sandboxes.list()).map(({ id }) => id);
  const failing = { template: "cmux-base", setup: ["exit 3"] };
  const jobs = [provision, provision, { kind: "provision" as const, input: failing }, provision, provision, provision];
  const id = await ask(jobs, { policy: "undo" });
  const batch = await bed.fleet.batches.get(id);
  const done = await batch.result(PATIENCE);
  const { succeeded, canceled, failedByCode } = done.counts;
  expect(failedByCode).toEqual({ setup_failed: 1 });
  expect(succeeded + canceled).toBe(5);
  expect(done).toMatchObject({ undone: succeeded, undoFailed: 0 });
  expect((await bed.fleet.sandboxes.list()).map(({ id: one }) => one)).toEqual(before);
});

test("cancel reaches what waits and what runs within a second or two", async () => {
  const batch = await bed.fleet.batch({ count: 60, template: "cmux-base", setup: ["sleep 60"] });
  const inSetup = () => bed.fleet.sandboxes.list({ state: "readying" });
  await until(async () => (await inSetup()).length === 2, "two items that run, and hold all slots");
  expect(await batch.cancel()).toBe(true);
  const asked = performance.now();
  const done = await batch.result(PATIENCE);
  expect(performance.now() - asked).toBeLessThan(4_000);
  expect(done.counts).toMatchObject({ total: 60, canceled: 60 });
});
