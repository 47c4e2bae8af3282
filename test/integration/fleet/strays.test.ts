/** Containers that nobody owns are removed, on proof that is true at that moment; what may be somebody's stays. */
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import { slotOf } from "../../../shared/state/slots.ts";
import { createStrays } from "../../../shared/state/strays.ts";
import { clearStaleLock } from "../../../workers/sandbox/stale-lock.ts";
import { type Bed, containerOf, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 2, timings: { destroy: 10_000 } },
    // One removal at a time.
    env: { FLEET_STRAY_GRACE_SECONDS: "0", FLEET_NODE_SLOTS: "2" },
  });
});
afterAll(() => bed.close());
beforeEach(() => bed.pve.faults.clear());

/** Makes a container with the description and the network of another, as a restored backup has them. */
function restore(vmid: number, { description = "", net0 = "" }: Readonly<Record<string, string>>) {
  bed.pve.faults.occupy(vmid, "pve1");
  bed.pve.faults.edit(vmid, { description, net0 });
}

/** A sandbox that has been destroyed, and what its container's config was. */
async function destroyed() {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { node: "pve1" });
  const config = containerOf(bed, vmid)?.config ?? {};
  await run(bed.fleet, "destroy", { sandboxId });
  return { vmid, config };
}

const withOtherMac = (config: Readonly<Record<string, string>>) => ({
  ...config,
  net0: (config["net0"] ?? "").replace(/hwaddr=[^,]*/i, "hwaddr=BC:24:11:00:00:00"),
});

test("a clone that comes after its sandbox's end is removed, a restored backup is left", async () => {
  const [late, restored] = [await destroyed(), await destroyed()];
  restore(late.vmid, withOtherMac(late.config));
  restore(restored.vmid, restored.config);
  await until(() => containerOf(bed, late.vmid) === undefined, "the removal of the late clone", 30_000);
  const strays = createStrays(bed.redis, bed.keys);
  const left = async () => (await strays.list()).get(Vmid.parse(restored.vmid))?.verdict === "later";
  await until(left, "the word that it is left", 30_000);
  const { since = 0, removeAt } = (await strays.list()).get(Vmid.parse(restored.vmid)) ?? {};
  expect(removeAt).toBe(since + 24 * 3_600_000);
  const told = (await bed.redis.xrange(bed.keys.events, "-", "+")).map(([, fields]) => fields.join(" "));
  expect(told.some((line) => line.includes("container.quarantined") && line.includes(`"removeAt":${removeAt}`))).toBe(
    true,
  );
  expect(told.some((line) => line.includes("container.removed") && line.includes(`"vmid":${late.vmid}`))).toBe(true);
  const metrics = (await bed.workers?.context.metrics.registry.metrics()) ?? "";
  for (const action of ["quarantined", "removed"])
    expect(metrics).toMatch(new RegExp(`^fleet_reconcile_actions_total\\{action="${action}"\\} [1-9]`, "m"));
  expect(containerOf(bed, restored.vmid)).toBeDefined();
  bed.pve.faults.vanish(restored.vmid);
});

test("what a human has made in place of a stray, while others were removed, is his", async () => {
  const strays = createStrays(bed.redis, bed.keys);
  const [one, two] = [await destroyed(), await destroyed()];
  // Seen in the same round: one list shows both.
  const list = bed.pve.faults.request({ kind: "hang", method: "GET", path: "^/cluster/resources", times: 20 });
  restore(one.vmid, withOtherMac(one.config));
  restore(two.vmid, withOtherMac(two.config));
  list.release();
  const first = await until(
    () => bed.pve.tasks().find(({ type, endedAt }) => type === "vzdestroy" && endedAt === undefined),
    "the first removal",
    30_000,
  );
  const other = String(one.vmid) === first.id ? two.vmid : one.vmid;
  bed.pve.faults.vanish(other);
  bed.pve.faults.occupy(other);
  await bed.pve.waitForTask(({ upid, endedAt }) => upid === first.upid && endedAt !== undefined, within());
  // A whole round later.
  const isStranger = async () => (await strays.list()).get(Vmid.parse(other))?.verdict === "stranger";
  await until(isStranger, "the word that it is somebody else's", 30_000);
  expect(containerOf(bed, other)?.config["hostname"]).toBe(`human-${other}`);
  bed.pve.faults.vanish(other);
});

test("a clone at work whose operation Redis lost keeps its lock", async () => {
  const here = await startBed({
    pve: { nodes: 1, timings: { cloneLinked: 30_000 } },
    ssh: {},
  });
  try {
    const handle = await here.fleet.provision({ template: "cmux-base" });
    const clone = await until(
      () => here.pve.tasks().find(({ type, endedAt }) => type === "vzclone" && endedAt === undefined),
      "a clone",
    );
    // As the adoption of its node after a lost second finds it.
    const { context } = here.workers ?? {};
    if (!context) throw new Error("no workers");
    const slots = [slotOf.node("pve1")];
    const server = (await here.redis.hget(here.keys.adopted, "pve1")) ?? "";
    const node = NodeName.parse("pve1");
    await context.slots.adopt(node, server, [{ upid: clone.upid, slots }]);
    const place = { node, vmid: Vmid.parse(clone.target) };
    const removed = await clearStaleLock(context, { place, lock: "create", owner: handle.id }, { signal: within() });
    expect(removed).toBe(false);
    expect(containerOf(here, place.vmid)?.lock).toBe("create");
    await handle.result({ timeoutMs: 60_000 });
    await until(async () => (await here.redis.exists(here.keys.slot(slotOf.node("pve1")))) === 0, "its slot", 20_000);
  } finally {
    await here.close();
  }
});

test("a node that is down does not keep a stray on another", async () => {
  const { vmid, config } = await destroyed();
  bed.pve.faults.occupy(20_900, "pve2");
  bed.pve.faults.node("pve2", "unreachable");
  restore(vmid, withOtherMac(config));
  const isOver = async () =>
    containerOf(bed, vmid) === undefined && (await bed.redis.exists(bed.keys.slot("node-pve1"))) === 0;
  await until(isOver, "the removal", 30_000);
  bed.pve.faults.node("pve2", "online");
  bed.pve.faults.vanish(20_900);
});
