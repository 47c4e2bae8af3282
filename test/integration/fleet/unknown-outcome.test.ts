/** A clone request whose fate is unknown, and a human who takes its VMID meanwhile. */
import { expect, test } from "vitest";
import { containerOf, firstFailure, startBed } from "./harness.ts";

test("a VMID that a human took after a lost request is left to him", async () => {
  const bed = await startBed({ pve: { nodes: 1, templates: [{ name: "cmux-base", vmid: 9_001 }] } });
  bed.pve.faults.request({ kind: "cut", method: "POST", path: "/clone$" });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await firstFailure(handle);
  const { vmid: taken } = await bed.fleet.sandboxes.get(handle.sandboxId);
  if (taken === undefined) throw new Error("no VMID was leased");
  bed.pve.faults.occupy(taken);
  const { vmid } = await handle.result({ timeoutMs: 20_000 });
  expect(vmid).not.toBe(taken);
  expect(containerOf(bed, taken)?.config["description"] ?? "").not.toContain(handle.sandboxId);
  bed.pve.faults.vanish(taken);
  await bed.close();
});
