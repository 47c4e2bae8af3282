/** A clone whose fate the run does not know or hears badly of: its container is neither doubled nor forgotten. */
import { expect, test } from "vitest";
import { slotOf } from "../../../shared/state/slots.ts";
import { containerOf, failure, firstFailure, startBed, until } from "./harness.ts";

test("a VMID that a human took after a lost request is left to him", async () => {
  const bed = await startBed({ pve: { nodes: 1, templates: [{ name: "cmux-base", vmid: 9_001 }] } });
  bed.pve.faults.request({ kind: "cut", method: "POST", path: "/clone$" });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await firstFailure(handle);
  const { vmid: taken } = await bed.fleet.sandboxes.get(handle.sandboxId);
  if (taken === undefined) throw new Error("no VMID was leased");
  bed.pve.faults.occupy(taken);
  const { vmid } = await handle.result({ timeoutMs: 60_000 });
  expect(vmid).not.toBe(taken);
  expect(containerOf(bed, taken)?.config["description"] ?? "").not.toContain(handle.sandboxId);
  bed.pve.faults.vanish(taken);
  await bed.close();
});

test.each(["goes on", "is canceled"])(
  "a failure right after the clone's end, then it %s: one container, or none",
  async (then) => {
    const pve = { nodes: 1, templates: [{ vmid: 9_001 }], timings: { cloneLinked: 5_000 } };
    const bed = await startBed({ pve });
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    await until(() => bed.pve.tasks().some(({ type }) => type === "vzclone"), "a clone");
    // Redis refuses the release of the clone's slot: the line for it is of the wrong type.
    const line = bed.keys.slotQueue(slotOf.replica("pve1", 9_001));
    await bed.redis.set(line, "not a line");
    await firstFailure(handle);
    await bed.redis.del(line);
    if (then === "is canceled") {
      await handle.cancel();
      await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
      expect(bed.pve.containers().filter(({ template }) => !template)).toEqual([]);
    } else {
      const { vmid } = await handle.result({ timeoutMs: 60_000 });
      expect(bed.pve.containers().filter(({ template }) => !template)).toMatchObject([{ vmid, status: "running" }]);
    }
    expect(bed.pve.log().filter(({ method, path }) => method === "POST" && path.endsWith("/clone"))).toHaveLength(1);
    await bed.close();
  },
);
