/** Cancel, wherever the operation is: it ends as canceled, and nothing of it goes on or stays in PVE. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Handle, JobName } from "../../../producers/index.ts";
import type { TaskEntry } from "../../pve/views.ts";
import { type Bed, containerOf, failure, firstFailure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  // One at a time on the only node, so that others wait.
  bed = await startBed({
    pve: {
      nodes: 1,
      templates: [{ name: "cmux-base" }, { name: "deaf", guest: { ignoresShutdown: true } }],
      // Long enough to be canceled in.
      timings: { taskAbort: 200, cloneLinked: 4_000 },
    },
    env: { FLEET_NODE_SLOTS: "1" },
  });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const running = (fits: (task: TaskEntry) => boolean) =>
  bed.pve.tasks().find((task) => task.endedAt === undefined && fits(task));

async function cancels(handle: Handle<JobName>): Promise<void> {
  expect(await handle.cancel()).toBe(true);
  await failure(handle.result({ timeoutMs: 15_000 }), "canceled");
  expect(await handle.status()).toMatchObject({ status: "canceled", aborting: false });
  expect(await handle.cancel()).toBe(false);
}

async function leavesNothing({ sandboxId }: { sandboxId: string }): Promise<void> {
  expect(bed.pve.containers().filter(({ config }) => config["description"]?.includes(sandboxId))).toEqual([]);
  expect(bed.pve.containers().filter(({ lock }) => lock !== undefined)).toEqual([]);
  expect(running(() => true)).toBeUndefined();
  expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ state: "failed" });
}

describe("a provision", () => {
  const provision = (more: object = {}) => bed.fleet.provision({ template: "cmux-base", ...more });

  test("that waits to be placed, and one that waits in its node's queue", async () => {
    const held = bed.pve.faults.request({ kind: "delay", ms: 1_500, method: "POST", path: "/clone$" });
    const [first, queued, placing] = [await provision(), await provision(), await provision()];
    await until(async () => (await placing.status()).waitingFor?.includes("busy"), "the third to wait for a slot");
    expect(await queued.status()).toMatchObject({ sandbox: { node: "pve1", vmid: undefined } });
    await Promise.all([cancels(placing), cancels(queued)]);
    expect((await first.status()).status).toBe("running");
    await first.result({ timeoutMs: 15_000 });
    expect(held.hits).toBe(1);
    const made = bed.pve.tasks().filter(({ type }) => type === "vzclone");
    expect(made).toHaveLength(1);
  });

  test.each(["vzclone", "vzstart"] as const)("in its %s task: the task is stopped", async (type) => {
    const handle = await provision();
    const task = await until(() => running((one) => one.type === type), `a ${type}`);
    await cancels(handle);
    await leavesNothing(handle);
    const { exitstatus } = bed.pve.tasks().find(({ upid }) => upid === task.upid) ?? {};
    expect(exitstatus).not.toBe("OK");
  });

  test("while it waits for its next attempt", async () => {
    bed.pve.faults.lock(9_001, "backup");
    const handle = await provision();
    await firstFailure(handle);
    await cancels(handle);
    bed.pve.faults.lock(9_001, null);
    await leavesNothing(handle);
  });

  test("in its setup: the command is killed", async () => {
    const handle = await provision({ setup: ["sleep 60"] });
    await until(async () => (await handle.status()).step === "setup 0", "the setup");
    await cancels(handle);
    await leavesNothing(handle);
  });

  test("while PVE sits on its clone request: what comes of it later is undone, too", async () => {
    const hang = bed.pve.faults.request({ kind: "hang", method: "POST", path: "/clone$" });
    const handle = await provision();
    await until(() => hang.hits === 1, "the request to hang");
    expect(await handle.cancel()).toBe(true);
    await until(async () => (await handle.status()).aborting, "the cancel to be known");
    const before = new Set(bed.pve.tasks().map(({ upid }) => upid));
    hang.release();
    const late = await bed.pve.waitForTask(({ type, upid }) => type === "vzclone" && !before.has(upid), within());
    await failure(handle.result({ timeoutMs: 50_000 }), "canceled");
    expect(containerOf(bed, late.target ?? 0)).toBeUndefined();
    await leavesNothing(handle);
  });
});

describe("changes of a sandbox", () => {
  test("that wait for another one", async () => {
    const { sandboxId } = await provisionOne(bed.fleet, { template: "deaf" });
    const shutdown = await bed.fleet.power({ sandboxId, action: "shutdown", graceSec: 600 });
    const parked = [
      await bed.fleet.snapshot({ sandboxId }),
      await bed.fleet.configure({ sandboxId, cores: 1 }),
      await bed.fleet.power({ sandboxId, action: "stop" }),
    ];
    for (const handle of parked) expect(await handle.status()).toMatchObject({ status: "queued" });
    for (const handle of parked) await cancels(handle);
    await until(() => running(({ type }) => type === "vzshutdown"), "the shutdown");
    await cancels(shutdown);
    expect(running(({ type }) => type !== "vzshutdown")).toBeUndefined();
  });

  test("in their PVE tasks: the tasks end with them, and the record says what stands", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "deaf" });
    const shutdown = await bed.fleet.power({ sandboxId, action: "shutdown", graceSec: 600 });
    await until(() => running(({ type, id }) => type === "vzshutdown" && id === String(vmid)), "the shutdown");
    await cancels(shutdown);
    expect(running(({ id }) => id === String(vmid))).toBeUndefined();
    expect((await bed.fleet.sandboxes.get(sandboxId)).state).toBe(containerOf(bed, vmid)?.status);
    const stop = await bed.fleet.power({ sandboxId, action: "stop" });
    await until(() => running(({ type, id }) => type === "vzstop" && id === String(vmid)), "the stop");
    await cancels(stop);
    expect(running(({ id }) => id === String(vmid))).toBeUndefined();
    expect((await bed.fleet.sandboxes.get(sandboxId)).state).toBe(containerOf(bed, vmid)?.status);
  });

  test("a snapshot whose reply was lost is removed", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    bed.pve.faults.request({ kind: "lose-reply", as: 596, method: "POST", path: "/snapshot$" });
    const handle = await bed.fleet.snapshot({ sandboxId, name: "lost" });
    await firstFailure(handle);
    await cancels(handle);
    expect(containerOf(bed, vmid)?.snapshots).not.toContain("lost");
  });

  test("a destroy that waits is canceled; one that has begun goes on to its end", async () => {
    const { sandboxId } = await provisionOne(bed.fleet);
    const cut = bed.pve.faults.request({ kind: "cut", method: "DELETE", path: "/lxc/2\\d+$" });
    const begun = await bed.fleet.destroy({ sandboxId });
    const parked = await bed.fleet.destroy({ sandboxId });
    await cancels(parked);
    await firstFailure(begun);
    expect(cut.hits).toBe(1);
    await begun.cancel();
    expect(await begun.result({ timeoutMs: 15_000 })).toMatchObject({ existed: true });
    expect(await run(bed.fleet, "destroy", { sandboxId })).toMatchObject({ existed: false });
  });
});
