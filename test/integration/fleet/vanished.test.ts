/** A container that a human removed: every kind says so at once, and a destroy is content. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { JobInput } from "../../../producers/index.ts";
import { type Bed, failure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 } });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const OPERATIONS = {
  exec: (sandboxId: string) => run(bed.fleet, "exec", { sandboxId, command: "true" }),
  snapshot: (sandboxId: string) => run(bed.fleet, "snapshot", { sandboxId }),
  "power start": (sandboxId: string) => run(bed.fleet, "power", { sandboxId, action: "start" }),
  "power stop": (sandboxId: string) => run(bed.fleet, "power", { sandboxId, action: "stop" }),
  "power reboot": (sandboxId: string) => run(bed.fleet, "power", { sandboxId, action: "reboot" }),
};

describe.each([
  ["removed", false],
  ["removed, its VMID now a human's", true],
])("%s", (_, taken) => {
  test.each(Object.entries(OPERATIONS))("%s", async (__, operate) => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    bed.pve.faults.vanish(vmid);
    if (taken) bed.pve.faults.occupy(vmid);
    const begun = performance.now();
    const error = await failure(operate(sandboxId), "sandbox_gone");
    expect(error.facts).toMatchObject({ sandbox: sandboxId, vmid, node: "pve1" });
    expect(error.text).toMatch(
      taken ? /container \d+ on pve1 is no longer this sandbox's; destroy/ : /container \d+ on pve1 is gone.*; destroy/,
    );
    // No retry will bring it back.
    expect(performance.now() - begun).toBeLessThan(3_000);
    expect(await run(bed.fleet, "destroy", { sandboxId })).toEqual({ destroyed: true, existed: false });
    const changed = bed.pve.log().filter(({ path, method }) => method !== "GET" && path.includes(`/lxc/${vmid}/`));
    expect(changed.filter(({ at }) => at > performance.timeOrigin + begun)).toEqual([]);
    if (taken) bed.pve.faults.vanish(vmid);
  });
});

describe("in the middle of a provision it is made again", () => {
  /** Removes the container once the stand-in has seen a request or task of it, and waits for the result. */
  async function vanishAt(type: "vzclone" | "vzstart", input: Partial<JobInput<"provision">> = {}) {
    const before = new Set(bed.pve.tasks().map(({ upid }) => upid));
    const handle = await bed.fleet.provision({ template: "cmux-base", ...input });
    const running = await until(
      () => bed.pve.tasks().find((task) => task.type === type && !before.has(task.upid)),
      `a ${type}`,
    );
    const vmid = running.target ?? Number(running.id);
    await bed.pve.waitForTask(({ upid }) => type === "vzclone" || upid === running.upid, within());
    bed.pve.faults.vanish(vmid);
    const { sandboxId } = await handle.result({ timeoutMs: 60_000 });
    const made = bed.pve.containers().filter(({ config }) => config["description"]?.includes(sandboxId));
    expect(made).toMatchObject([{ status: "running" }]);
  }
  test("while it is cloned", () => vanishAt("vzclone"));
  test("when it has started", async () => {
    bed.pve.faults.request({ kind: "delay", ms: 300, method: "GET", path: "/lxc/2\\d+/interfaces$" });
    await vanishAt("vzstart");
  });
});

test("while the setup of a provision runs: it fails, since nobody knows what the command has done", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base", setup: ["sleep 5"] });
  await until(async () => (await handle.status()).step?.startsWith("setup"), "its setup");
  const { vmid } = await bed.fleet.sandboxes.get(handle.sandboxId);
  bed.pve.faults.vanish(vmid ?? 0);
  await failure(handle.result({ timeoutMs: 60_000 }), "exec_interrupted");
  expect(await bed.fleet.sandboxes.get(handle.sandboxId)).toMatchObject({ state: "failed" });
});
