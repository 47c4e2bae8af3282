/** A worker that is asked to go: it takes nothing new, ends or hands back what it has, and is gone in time. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Bed, failure, provisionOne, startBed, until } from "./harness.ts";

let bed: Bed;
beforeEach(async () => {
  bed = await startBed({
    workers: "none",
    pve: { nodes: 1, timings: { cloneLinked: 10_000, start: 10_000 } },
  });
});
afterEach(() => bed.close());

const inTask = (type: string) =>
  until(() => bed.pve.tasks().find((task) => task.type === type && task.endedAt === undefined), `a ${type}`);

test.each(["vzclone", "vzstart"])(
  "SIGTERM in a provision's %s hands it back at once; nothing is lost",
  async (type) => {
    const first = await bed.startProcess({ FLEET_SHUTDOWN_SECONDS: "0" });
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    await inTask(type);
    const told = performance.now();
    expect(await first.end("SIGTERM")).toBe(0);
    expect(performance.now() - told).toBeLessThan(3_000);
    expect(await handle.status()).toMatchObject({ status: "running", attempts: 0 });
    await bed.startProcess();
    const begun = performance.now();
    const { vmid } = await handle.result({ timeoutMs: 60_000 });
    // Not after the lock of a dead worker has run out: it was handed back. The two tasks take 2 s together.
    expect(performance.now() - begun).toBeLessThan(4_500);
    expect(bed.pve.tasks().map((task) => task.type)).toEqual(["vzclone", "vzstart"]);
    expect(bed.pve.containers().filter(({ template }) => !template)).toMatchObject([{ vmid, status: "running" }]);
  },
);

test("with time to spare it ends what it has, and takes nothing new", async () => {
  const first = await bed.startProcess({ FLEET_SHUTDOWN_SECONDS: "20" });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await inTask("vzclone");
  const gone = first.end("SIGINT");
  await until(() => first.output().includes('"closing"'), "the worker to close");
  const late = await bed.fleet.provision({ template: "cmux-base" });
  await handle.result({ timeoutMs: 60_000 });
  expect(await gone).toBe(0);
  expect((await late.status()).status).toBe("queued");
  expect(await late.cancel()).toBe(true);
  await bed.startProcess();
  await failure(late.result({ timeoutMs: 60_000 }), "canceled");
});

test("an idle worker goes at once, and one that is told twice goes once", async () => {
  const idle = await bed.startProcess();
  const told = performance.now();
  expect(await Promise.all([idle.end("SIGTERM"), idle.end("SIGTERM")])).toEqual([0, 0]);
  expect(performance.now() - told).toBeLessThan(3_000);
});

test("a command that runs is ended, and not run again", async () => {
  const first = await bed.startProcess({ FLEET_SHUTDOWN_SECONDS: "0" });
  const { sandboxId } = await provisionOne(bed.fleet);
  const handle = await bed.fleet.exec({ sandboxId, command: "sleep 60" });
  await until(async () => (await handle.status()).step === "sent", "the command");
  expect(await first.end("SIGTERM")).toBe(0);
  await bed.startProcess();
  await failure(handle.result({ timeoutMs: 60_000 }), "exec_interrupted");
});
