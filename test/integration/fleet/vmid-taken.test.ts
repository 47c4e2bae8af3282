/** VMIDs of our range that humans take for their own guests: the next one is leased, and nothing of theirs is touched. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Bed, firstFailure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 2, templates: [{ name: "cmux-base", node: "pve1", vmid: 9_001 }] } });
});
afterAll(() => bed.close());
const taken: number[] = [];
afterEach(() => {
  bed.pve.faults.clear();
  for (const vmid of taken.splice(0)) bed.pve.faults.vanish(vmid);
});

const GUESTS = [
  ["a container on the same node", "pve1", "lxc"],
  ["a container on another node", "pve2", "lxc"],
  ["a QEMU machine on the same node", "pve1", "qemu"],
  ["a QEMU machine on another node", "pve2", "qemu"],
] as const;

function occupy(vmid: number, node: string, kind: "lxc" | "qemu"): void {
  bed.pve.faults.occupy(vmid, node, kind);
  taken.push(vmid);
}

/** Requests that would have changed the human's guest. */
const touched = (vmid: number, since: number) =>
  bed.pve.log().filter(({ method, path, at }) => at > since && method !== "GET" && path.includes(`/${vmid}`));

describe.each(GUESTS)("%s", (_, node, kind) => {
  test("before it is asked for", async () => {
    const { vmid, sandboxId } = await provisionOne(bed.fleet);
    for (const next of [1, 2, 3]) occupy(vmid + next, node, kind);
    const since = Date.now();
    const made = await provisionOne(bed.fleet);
    expect(made.vmid).toBe(vmid + 4);
    for (const each of taken) expect(touched(each, since)).toEqual([]);
    for (const one of [sandboxId, made.sandboxId]) await run(bed.fleet, "destroy", { sandboxId: one });
  });

  test("between its lease and the clone", async () => {
    const slow = bed.pve.faults.request({ kind: "delay", ms: 200, method: "POST", path: "/clone$" });
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    await until(() => slow.hits > 0, "the clone to be asked for");
    const { vmid = 0 } = await bed.fleet.sandboxes.get(handle.sandboxId);
    const since = Date.now();
    occupy(vmid, node, kind);
    const made = await handle.result({ timeoutMs: 60_000 });
    expect(made.vmid).toBe(vmid + 1);
    expect((await handle.status()).attempts).toBe(0);
    expect(touched(vmid, since)).toEqual([]);
  });

  test("after a clone request whose fate is unknown", async () => {
    bed.pve.faults.request({ kind: "cut", method: "POST", path: "/clone$" });
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    expect(await firstFailure(handle)).toBe("outcome_unknown");
    const { vmid = 0 } = await bed.fleet.sandboxes.get(handle.sandboxId);
    const since = Date.now();
    occupy(vmid, node, kind);
    const made = await handle.result({ timeoutMs: 60_000 });
    expect(made.vmid).not.toBe(vmid);
    expect((await handle.status()).attempts).toBe(1);
    expect(touched(vmid, since)).toEqual([]);
  });
});
