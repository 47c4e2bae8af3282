/** Cancel, wherever the operation is: it ends as canceled, and nothing of it goes on or stays in PVE. */
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from "vitest";
import type { Handle, JobInput, JobMethods, JobName, OperationView } from "../../../producers/index.ts";
import { JOB_NAMES } from "../../../shared/jobs/index.ts";
import { nodeQueue } from "../../../shared/queues.ts";
import { slotOf } from "../../../shared/state/slots.ts";
import { ABORTS_LOCK_MS, abortsLock } from "../../../workers/control/aborts.ts";
import { CLONE } from "../../../workers/sandbox/look.ts";
import type { TaskEntry } from "../../pve/views.ts";
import { type Bed, containerOf, failure, firstFailure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  // One at a time on the only node, so that others wait.
  bed = await startBed({
    pve: {
      nodes: 1,
      templates: [
        { name: "cmux-base" },
        { name: "deaf", guest: { ignoresShutdown: true } },
        { name: "mute", guest: { execd: false } },
      ],
      // A snapshot is not stopped: long enough to be canceled in.
      timings: { taskAbort: 200, snapshot: 10_000 },
    },
    env: { FLEET_NODE_SLOTS: "1", FLEET_EXEC_SLOTS: "1" },
  });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const running = (fits: (task: TaskEntry) => boolean) =>
  bed.pve.tasks().find((task) => task.endedAt === undefined && fits(task));

/** What `cancel` writes, without the message that tells of it. */
async function askUnheard({ id }: Handle<JobName>): Promise<void> {
  const why = { code: "canceled", message: "canceled", facts: {} };
  const { keys } = bed;
  await bed.redis.multi().hset(keys.operation(id), "abort", JSON.stringify(why)).sadd(keys.aborting, id).exec();
}

/** It takes effect without its message too, within 2 s: what waits has ended, what ran undoes. */
async function cancels(...handles: Handle<JobName>[]): Promise<void> {
  const before = new Map(
    await Promise.all(handles.map(async (one) => [one.id, (await one.status()).attempts] as const)),
  );
  const turns = (status: OperationView) =>
    status.endedAt !== undefined || status.attempts > (before.get(status.id) ?? 0);
  await Promise.all(handles.map(askUnheard));
  for (const handle of handles)
    await until(async () => turns(await handle.status()), `${handle.kind} ${handle.id} to hear of its cancel`, 2_000);
  for (const handle of handles) {
    await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
    expect(await handle.status()).toMatchObject({ status: "canceled", aborting: false });
    expect(await handle.cancel()).toBe(false);
  }
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
    const queue = bed.workers?.context.queues.get(nodeQueue("pve1"));
    await queue?.pause();
    const [queued, placing] = [await provision(), await provision()];
    await until(async () => (await placing.status()).waitingFor?.includes("busy"), "the second to wait for a slot");
    expect(await queued.status()).toMatchObject({ sandbox: { node: "pve1", vmid: undefined } });
    await cancels(placing, queued);
    await queue?.resume();
    expect(bed.pve.tasks().filter(({ type }) => type === "vzclone")).toEqual([]);
  });

  test("between the record of its clone and the request: nothing was asked, so nothing is waited for", async () => {
    const context = bed.workers?.context;
    if (!context) throw new Error("the bed has workers");
    const write = context.store.write.bind(context.store);
    using spy = vi.spyOn(context.store, "write");
    const handle = await provision();
    spy.mockImplementation(async (writer, written) => {
      const released = await write(writer, written);
      const { step } = written.operation ?? {};
      if (writer.id !== handle.id || step?.name !== CLONE || step.upid !== undefined) return released;
      using heard = context.wake.watch(["abort"]);
      await handle.cancel();
      await heard.next({ timeoutMs: 5_000, signal: within() });
      await context.redis.ping(); // the run's own look at the abort went ahead of it
      return released;
    });
    await failure(handle.result({ timeoutMs: 5_000 }), "canceled");
    await leavesNothing(handle);
  });

  test.each(["vzclone", "vzstart"] as const)("in its %s task: the task is stopped", async (type) => {
    bed.pve.faults.task({ type, hold: true });
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

  test("while it waits for a slot", async () => {
    const slot = bed.keys.slot(slotOf.replica("pve1", 9_001));
    await bed.redis.hset(slot, "op_0000000000000000", Date.now());
    const handle = await provision();
    await until(() => bed.redis.exists(bed.keys.slotQueue(slotOf.replica("pve1", 9_001))), "it to stand in line");
    await cancels(handle);
    await bed.redis.del(slot);
    await leavesNothing(handle);
  });

  test("while it waits for its exec daemon", async () => {
    const handle = await provision({ template: "mute" });
    await until(async () => (await handle.status()).sandbox.state === "readying", "it to be started");
    await cancels(handle);
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
    await cancels(...parked);
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
    bed.pve.faults.task({ type: "vzstop", hold: true });
    const stop = await bed.fleet.power({ sandboxId, action: "stop" });
    await until(() => running(({ type, id }) => type === "vzstop" && id === String(vmid)), "the stop");
    await cancels(stop);
    expect(running(({ id }) => id === String(vmid))).toBeUndefined();
    expect((await bed.fleet.sandboxes.get(sandboxId)).state).toBe(containerOf(bed, vmid)?.status);
  });

  test("a snapshot in its task: what comes of it is removed", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    const handle = await bed.fleet.snapshot({ sandboxId, name: "early" });
    await until(() => running(({ type, id }) => type === "vzsnapshot" && id === String(vmid)), "the snapshot");
    await cancels(handle);
    expect(running(({ id }) => id === String(vmid))).toBeUndefined();
    const { lock, snapshots } = containerOf(bed, vmid) ?? {};
    expect({ lock, snapshots }).toEqual({ lock: undefined, snapshots: [] });
  });

  test("that waits for its next attempt in its queue", async () => {
    const { sandboxId } = await provisionOne(bed.fleet);
    bed.pve.faults.request({ kind: "refuse", method: "PUT", status: 500, text: "cluster not ready - no quorum?" });
    const handle = await bed.fleet.configure({ sandboxId, cores: 1 });
    const queue = bed.workers?.context.queues.get(nodeQueue("pve1"));
    await until(async () => (await (await queue?.getJob(handle.id))?.getState()) === "delayed", "it to be delayed");
    await cancels(handle);
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
    expect(await begun.result({ timeoutMs: 60_000 })).toMatchObject({ existed: true });
    expect(await run(bed.fleet, "destroy", { sandboxId })).toMatchObject({ existed: false });
  });
});

test("a command that waits for its sandbox", async () => {
  const provision = await bed.fleet.provision({ template: "cmux-base" });
  const handle = await bed.fleet.exec({ sandboxId: provision.sandboxId, command: "true" });
  await cancels(handle);
  await provision.result({ timeoutMs: 60_000 });
});

/** One that can wait, of each kind that is about a sandbox; an upload waits as a download does. */
const INPUTS: {
  [N in Exclude<JobName, "provision" | "adopt" | "build" | "replicate" | "upload">]: (sandboxId: string) => JobInput<N>;
} = {
  exec: (sandboxId) => ({ sandboxId, command: "true" }),
  shell: (sandboxId) => ({ sandboxId }),
  expose: (sandboxId) => ({ sandboxId, name: "web", port: 8_000 }),
  hide: (sandboxId) => ({ sandboxId, name: "web" }),
  link: (sandboxId) => ({ sandboxId, name: "web" }),
  download: (sandboxId) => ({ sandboxId, path: "/etc/hostname" }),
  update: (sandboxId) => ({ sandboxId, ttlSeconds: null }),
  delete_snapshot: (sandboxId) => ({ sandboxId, snapshotId: "snap_0000000000000001" }),
  restore: (sandboxId) => ({ sandboxId, snapshotId: "snap_0000000000000001" }),
  template: (sandboxId) => ({ sandboxId, name: "never" }),
  snapshot: (sandboxId) => ({ sandboxId }),
  power: (sandboxId) => ({ sandboxId, action: "stop" }),
  migrate: (sandboxId) => ({ sandboxId }),
  configure: (sandboxId) => ({ sandboxId, cores: 1 }),
  destroy: (sandboxId) => ({ sandboxId }),
};

test("each kind, in its queue and parked behind another, also where a worker died while it looked for cancels", async () => {
  const { sandboxId: busy } = await provisionOne(bed.fleet, { template: "deaf" });
  const [changed, doomed] = [await provisionOne(bed.fleet), await provisionOne(bed.fleet)];
  const shutdown = await bed.fleet.power({ sandboxId: busy, action: "shutdown", graceSec: 600 });
  await until(() => running(({ type }) => type === "vzshutdown"), "the shutdown");
  const sleep = await bed.fleet.exec({ sandboxId: changed.sandboxId, command: "sleep 60" });
  await until(async () => (await sleep.status()).step === "sent", "the command");
  const methods: JobMethods = bed.fleet;
  const handles: Handle<JobName>[] = [];
  for (const kind of JOB_NAMES) {
    if (kind === "provision" || kind === "adopt" || kind === "upload") continue;
    if (kind === "build" || kind === "replicate") continue;
    const { sandboxId } = kind === "destroy" ? doomed : changed;
    for (let count = 0; count < 2; count++) handles.push(await methods[kind](INPUTS[kind](sandboxId) as never)); // its own kind's
  }
  await bed.redis.set(abortsLock(bed.keys.prefix), "of one that died", "PX", ABORTS_LOCK_MS);
  await cancels(...handles);
  await cancels(shutdown, sleep);
  expect(running(() => true)).toBeUndefined();
  for (const { sandboxId } of [changed, doomed])
    expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ state: "running" });
});

test("where the message comes through, nobody need look", async () => {
  const { sandboxId } = await provisionOne(bed.fleet, { template: "deaf" });
  const shutdown = await bed.fleet.power({ sandboxId, action: "shutdown", graceSec: 600 });
  const parked = await bed.fleet.configure({ sandboxId, cores: 1 });
  await parked.cancel();
  await bed.redis.srem(bed.keys.aborting, parked.id);
  await bed.redis.publish(bed.keys.wake, "abort what-is-none");
  await failure(parked.result({ timeoutMs: 60_000 }), "canceled");
  await until(() => running(({ type }) => type === "vzshutdown"), "the shutdown");
  await cancels(shutdown);
});
