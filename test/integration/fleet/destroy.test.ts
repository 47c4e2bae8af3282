/** Destroying: legal in every state, and everything of the sandbox goes. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import {
  type Bed,
  containerOf,
  failure,
  firstFailure,
  provisionOne,
  run,
  startBed,
  until,
  useUpAttempts,
  useUpTime,
  within,
} from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 } });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

test("takes container, leases, secrets, snapshots and expiry away; the record stays", async () => {
  const { sandboxId, vmid, address } = await provisionOne(bed.fleet, { env: { A: "b" }, ttlSeconds: 600 });
  const { snapshotId } = await run(bed.fleet, "snapshot", { sandboxId });
  expect(await run(bed.fleet, "destroy", { sandboxId })).toEqual({ destroyed: true, existed: true });
  expect(containerOf(bed, vmid)).toBeUndefined();
  const { redis, keys } = bed;
  expect(await redis.hget(keys.vmids, String(vmid))).toBeNull();
  expect(await redis.hget(keys.addresses, address)).toBeNull();
  expect(await redis.exists(keys.secret(sandboxId), keys.snapshot(snapshotId))).toBe(0);
  expect(await redis.zscore(keys.expiries, sandboxId)).toBeNull();
  expect(await bed.fleet.sandboxes.list()).toEqual([]);
  expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ state: "destroyed", endedAt: expect.any(Number) });
  const sent = bed.pve.log().find(({ method, path }) => method === "DELETE" && path.endsWith(`/lxc/${vmid}`));
  expect(sent?.params).toMatchObject({ purge: "1" });
});

test("again, or on a failed sandbox, it says that nothing was there", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  await run(bed.fleet, "destroy", { sandboxId });
  expect(await run(bed.fleet, "destroy", { sandboxId })).toEqual({ destroyed: true, existed: false });
  const failing = await bed.fleet.provision({ template: "nope" });
  await failure(failing.result({ timeoutMs: 60_000 }), "template_not_found");
  expect(await run(bed.fleet, "destroy", { sandboxId: failing.sandboxId })).toEqual({
    destroyed: true,
    existed: false,
  });
  await failure(bed.fleet.destroy({ sandboxId: "sbx_0000000000000000" }), "sandbox_not_found");
});

test("a stopped one, and one that vanished", async () => {
  const stopped = await provisionOne(bed.fleet);
  await run(bed.fleet, "power", { sandboxId: stopped.sandboxId, action: "stop" });
  expect(await run(bed.fleet, "destroy", { sandboxId: stopped.sandboxId })).toMatchObject({ existed: true });
  const vanished = await provisionOne(bed.fleet);
  bed.pve.faults.vanish(vanished.vmid);
  expect(await run(bed.fleet, "destroy", { sandboxId: vanished.sandboxId })).toMatchObject({ existed: false });
});

test("what PVE leaves of a destroy whose last step fails goes, too, once its lock does", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  const text = `access permissions cleanup for VM ${vmid} failed: I/O`;
  bed.pve.faults.task({ type: "vzdestroy", text, leaveLocks: true });
  const handle = await bed.fleet.destroy({ sandboxId });
  expect(await firstFailure(handle)).toBe("task_failed");
  expect(containerOf(bed, vmid)).toMatchObject({ lock: "destroyed", name: `CT${vmid}` });
  bed.pve.faults.lock(vmid, null);
  expect(await handle.result({ timeoutMs: 20_000 })).toEqual({ destroyed: true, existed: true });
  expect(containerOf(bed, vmid)).toBeUndefined();
});

test("what took the VMID over is somebody else's and stays", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  bed.pve.faults.vanish(vmid);
  bed.pve.faults.occupy(vmid);
  expect(await run(bed.fleet, "destroy", { sandboxId })).toMatchObject({ existed: false });
  expect(containerOf(bed, vmid)?.name).toBe(`human-${vmid}`);
});

test("PVE's protection flag stops it, and it can be asked again", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  bed.pve.faults.edit(vmid, { protection: "1" });
  await failure(run(bed.fleet, "destroy", { sandboxId }), "protected");
  expect(containerOf(bed, vmid)).toBeDefined();
  bed.pve.faults.edit(vmid, { protection: null });
  expect(await run(bed.fleet, "destroy", { sandboxId })).toMatchObject({ existed: true });
});

describe("during a provision", () => {
  /** A provision held in one of its steps, destroyed there. */
  async function destroyIn(type: "vzclone" | "vzstart") {
    const held = bed.pve.faults.task({ type, hold: true });
    const provision = await bed.fleet.provision({ template: "cmux-base" });
    await until(() => held.hits > 0, `a ${type}`);
    const destroy = await bed.fleet.destroy({ sandboxId: provision.sandboxId });
    await failure(provision.result({ timeoutMs: 60_000 }), "canceled");
    expect(await provision.status()).toMatchObject({ status: "canceled" });
    await expect(destroy.result({ timeoutMs: 60_000 })).resolves.toMatchObject({ destroyed: true });
    expect(await bed.fleet.sandboxes.get(provision.sandboxId)).toMatchObject({ state: "destroyed" });
    expect(bed.pve.containers().filter(({ config }) => config["description"]?.includes(provision.sandboxId))).toEqual(
      [],
    );
    expect(bed.pve.containers().find(({ vmid }) => vmid === 9_001)?.lock).toBeUndefined();
  }
  test("while it is cloned", () => destroyIn("vzclone"));
  test("while it starts", () => destroyIn("vzstart"));

  test("before it was begun", async () => {
    bed.pve.faults.lock(9_001, "backup");
    const provision = await bed.fleet.provision({ template: "cmux-base" });
    await firstFailure(provision);
    const destroy = await bed.fleet.destroy({ sandboxId: provision.sandboxId });
    await failure(provision.result({ timeoutMs: 60_000 }), "canceled");
    expect(await destroy.result({ timeoutMs: 60_000 })).toEqual({ destroyed: true, existed: false });
    bed.pve.faults.lock(9_001, null);
  });
});

const DELETE = { method: "DELETE", path: "/lxc/2\\d+$" };

describe("bad weather", () => {
  test.each([
    [
      "executed, reply lost",
      () => bed.pve.faults.request({ ...DELETE, kind: "lose-reply", as: 596 }),
      "outcome_unknown",
    ],
    ["cut", () => bed.pve.faults.request({ ...DELETE, kind: "cut" }), "outcome_unknown"],
    ["HTML", () => bed.pve.faults.request({ ...DELETE, kind: "html" }), "outcome_unknown"],
    ["a failed task", () => bed.pve.faults.task({ type: "vzdestroy", text: "lvremove failed" }), "task_failed"],
    [
      "a locked container",
      () => bed.pve.faults.request({ ...DELETE, kind: "refuse", status: 500, text: "CT is locked (snapshot)" }),
      "container_locked",
    ],
  ] as const)("%s: healed", async (_, arm, code) => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    arm();
    const handle = await bed.fleet.destroy({ sandboxId });
    expect(await firstFailure(handle)).toBe(code);
    expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ destroyed: true });
    expect(containerOf(bed, vmid)).toBeUndefined();
  });

  test("without end or out of time: failed, and it can be asked again", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    bed.pve.faults.task({ type: "vzdestroy", text: "lvremove failed", times: 3 });
    const tried = await bed.fleet.destroy({ sandboxId });
    await useUpAttempts(bed, tried, 12);
    await failure(tried.result({ timeoutMs: 60_000 }), "task_failed");
    const late = await bed.fleet.destroy({ sandboxId });
    await useUpTime(bed, late, 900_000);
    await failure(late.result({ timeoutMs: 60_000 }), "timeout");
    await run(bed.fleet, "destroy", { sandboxId });
    await bed.pve.waitForTask(({ type, id }) => type === "vzdestroy" && id === String(vmid), within());
    expect(containerOf(bed, vmid)).toBeUndefined();
  });
});
