/** What somebody did behind our back is taken into the records; what ran when its node went down is started again. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 3, timings: { resourcesLag: 0 } } });
});
afterAll(() => bed.close());

const stateOf = async (id: string) => (await bed.fleet.sandboxes.get(id)).state;
const becomes = (id: string, state: string) =>
  until(async () => (await stateOf(id)) === state, `${id} to be ${state}`, 20_000);

test("ghosts end as lost; what is stopped, started, renamed, resized or moved is taken in, with events", async () => {
  const [gone, stopped, changed] = await Promise.all([1, 2, 3].map(() => provisionOne(bed.fleet, { node: "pve1" })));
  if (!gone || !stopped || !changed) throw new Error("unreachable");
  await run(bed.fleet, "power", { sandboxId: changed.sandboxId, action: "stop" });
  const events = bed.fleet.events({ sandbox: changed.sandboxId, types: ["sandbox.updated"] });
  bed.pve.faults.vanish(gone.vmid);
  bed.pve.faults.crash(stopped.vmid);
  bed.pve.faults.edit(changed.vmid, { hostname: "renamed", memory: "1024" });
  bed.pve.faults.move(changed.vmid, "pve2");
  await Promise.all([becomes(gone.sandboxId, "lost"), becomes(stopped.sandboxId, "stopped")]);
  expect(await bed.redis.hexists(bed.keys.vmids, String(gone.vmid))).toBe(0);
  for await (const event of events) {
    expect(event).toMatchObject({ data: { fields: ["node", "hostname", "resources"] } });
    break;
  }
  expect(await bed.fleet.sandboxes.get(changed.sandboxId)).toMatchObject({ node: "pve2", hostname: "renamed" });
  expect(await bed.redis.hexists(bed.keys.reserved("pve1"), changed.sandboxId)).toBe(0);
  await run(bed.fleet, "power", { sandboxId: changed.sandboxId, action: "start" });
  for (const { sandboxId } of [stopped, changed]) await run(bed.fleet, "destroy", { sandboxId });
});

test("after its node's start anew what ran there runs again, and what was stopped stays so", async () => {
  const [ran, rested] = await Promise.all([1, 2].map(() => provisionOne(bed.fleet, { node: "pve3" })));
  if (!ran || !rested) throw new Error("unreachable");
  await run(bed.fleet, "power", { sandboxId: rested.sandboxId, action: "stop" });
  await until(async () => (await bed.redis.hexists(bed.keys.boots, "pve3")) === 1, "a round");
  bed.pve.faults.reboot("pve3");
  const isUp = () => containerOf(bed, ran.vmid)?.status === "running";
  await until(async () => isUp() && (await bed.redis.exists(bed.keys.restarts)) === 0, "its start", 30_000);
  expect(await stateOf(ran.sandboxId)).toBe("running");
  expect([await stateOf(rested.sandboxId), containerOf(bed, rested.vmid)?.status]).toEqual(["stopped", "stopped"]);
  expect((await run(bed.fleet, "exec", { sandboxId: ran.sandboxId, command: "true" })).exitCode).toBe(0);
  for (const { sandboxId } of [ran, rested]) await run(bed.fleet, "destroy", { sandboxId });
});

test("a node is forgotten only when it is no more: its sandboxes are lost, and hold nothing", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { node: "pve2" });
  const error = await failure(bed.fleet.nodes.forget("pve2"), "invalid_input");
  expect(error.text).toContain("pve2 is online");
  bed.pve.faults.node("pve2", "unreachable");
  const found = await bed.fleet.nodes.forget("pve2");
  expect(found).toMatchObject([{ what: "ghost", sandbox: sandboxId, done: "taken in" }]);
  expect(await stateOf(sandboxId)).toBe("lost");
  expect(await bed.redis.exists(bed.keys.reserved("pve2"))).toBe(0);
  bed.pve.faults.vanish(vmid);
  bed.pve.faults.node("pve2", "online");
});
