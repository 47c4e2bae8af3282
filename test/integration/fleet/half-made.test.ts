/** A clone that left its container half made: a human's unlock must not turn it into somebody's sandbox. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Bed, containerOf, failure, firstFailure, run, startBed } from "./harness.ts";

let bed: Bed;
beforeEach(async () => {
  bed = await startBed({ pve: { nodes: 1, templates: [{ name: "cmux-base", vmid: 9_001 }] } });
});
afterEach(() => bed.close());

test.each([
  ["its worker never started", () => bed.pve.faults.request({ method: "POST", path: "/clone$", kind: "no-worker" })],
  [
    "its task failed",
    () => bed.pve.faults.task({ type: "vzclone", text: "clone failed: I/O error", leaveLocks: true }),
  ],
])("%s: once unlocked it is removed and made anew", async (_, arm) => {
  arm();
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await firstFailure(handle);
  const half = bed.pve.containers().find(({ lock }) => lock === "create");
  expect(half?.config["rootfs"]).toBeUndefined();
  for (const { vmid } of bed.pve.containers().filter(({ lock }) => lock !== undefined)) bed.pve.faults.lock(vmid, null);
  const { vmid } = await handle.result({ timeoutMs: 60_000 });
  expect(containerOf(bed, vmid)?.config["rootfs"]).toBeDefined();
  expect(bed.pve.containers().filter(({ template }) => !template)).toHaveLength(1);
});

test("nobody unlocks it: the provision ends as quarantined with its place, and destroy goes on once it is unlocked", async () => {
  bed.pve.faults.task({ type: "vzclone", text: "clone failed: I/O error", leaveLocks: true });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const { facts } = await failure(handle.result({ timeoutMs: 50_000 }), "quarantined");
  const [half] = bed.pve.containers().filter(({ template }) => !template);
  expect(facts).toMatchObject({ quarantined: true, node: "pve1", vmid: half?.vmid });
  expect(String(facts["wayOut"])).toContain(`pct unlock ${half?.vmid}`);
  expect((await bed.fleet.sandboxes.get(handle.sandboxId)).state).toBe("quarantined");
  for (const { vmid } of bed.pve.containers().filter(({ lock }) => lock !== undefined)) bed.pve.faults.lock(vmid, null);
  await run(bed.fleet, "destroy", { sandboxId: handle.sandboxId });
  expect(bed.pve.containers().filter(({ template }) => !template)).toEqual([]);
});
