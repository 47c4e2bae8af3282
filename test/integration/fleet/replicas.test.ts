/** Several replicas of a template on one node: each clone takes one that is free. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, provisionOne, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  // Clones of three seconds, so that a reading of the cluster falls into one.
  bed = await startBed({
    pve: { nodes: 1, templates: [{ vmid: 9_001 }, { vmid: 9_002 }], timings: { cloneLinked: 30_000 } },
  });
});
afterAll(() => bed.close());

const inventory = async () => {
  const read = await bed.workers?.context.inventory.refresh(within());
  if (!read) throw new Error("no workers");
  return read;
};
const clones = () => bed.pve.tasks().filter(({ type }) => type === "vzclone");

test("clones that come at once take one each; a reading meanwhile does not take their locks for somebody else's", async () => {
  const two = [provisionOne(bed.fleet), provisionOne(bed.fleet)];
  await until(() => clones().length === 2, "two clones");
  expect(new Set(clones().map(({ id }) => id)).size).toBe(2);
  const begun = Date.now();
  const { replicas } = await until(async () => {
    const read = await inventory();
    return read.at > begun ? read : null;
  }, "a reading");
  expect(clones().filter(({ endedAt }) => endedAt === undefined)).toHaveLength(2);
  expect(replicas.map(({ vmid, locked }) => ({ vmid, locked }))).toEqual([
    { vmid: 9_001, locked: false },
    { vmid: 9_002, locked: false },
  ]);
  await Promise.all(two);
});

test("a lock that is not of our clones is seen, and that replica is left alone", async () => {
  bed.pve.faults.lock(9_001, "disk");
  await until(
    async () => (await inventory()).replicas.find(({ vmid }) => vmid === 9_001)?.locked,
    "the lock to be seen",
  );
  const before = clones().length;
  await provisionOne(bed.fleet);
  expect(
    clones()
      .slice(before)
      .map(({ id }) => id),
  ).toEqual(["9002"]);
  bed.pve.faults.lock(9_001, null);
});

test("two that each try the other's replica next do not wait for each other", async () => {
  await until(async () => (await inventory()).replicas.every(({ locked }) => !locked), "two free replicas");
  bed.pve.faults.request({ kind: "cut", method: "POST", path: "/clone$", times: 2 });
  const before = clones().length;
  await Promise.all([provisionOne(bed.fleet), provisionOne(bed.fleet)]);
  expect(clones().length).toBe(before + 2);
});
