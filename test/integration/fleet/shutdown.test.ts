/** A worker that is asked to go: it takes nothing new, ends or hands back what it has, and is gone in time. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { type Bed, failure, provisionOne, startBed, until } from "./harness.ts";

let bed: Bed;
beforeEach(async () => {
  bed = await startBed({
    workers: "none",
    pve: { nodes: 1 },
  });
});
afterEach(() => bed.close());

/** A worker process, and how soon it must be gone when it is told: on a machine that is busy with something else, as its start took. */
async function start(seconds: string) {
  const begun = performance.now();
  const worker = await bed.startProcess({ FLEET_SHUTDOWN_SECONDS: seconds });
  return { worker, soonMs: Math.max(3_000, performance.now() - begun) };
}

test.each(["vzclone", "vzstart"])(
  "SIGTERM in a provision's %s hands it back at once; nothing is lost",
  async (type) => {
    const { worker, soonMs } = await start("0");
    const held = bed.pve.faults.task({ type, hold: true });
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    await until(() => held.hits > 0, `a ${type}`);
    const told = performance.now();
    expect(await worker.end("SIGTERM")).toBe(0);
    expect(performance.now() - told).toBeLessThan(soonMs);
    expect(await handle.status()).toMatchObject({ status: "running", attempts: 0 });
    await bed.startProcess();
    const begun = performance.now();
    held.release();
    const { vmid } = await handle.result({ timeoutMs: 60_000 });
    // Not after the lock of a dead worker has run out: it was handed back.
    expect(performance.now() - begun).toBeLessThan(4_500);
    expect(bed.pve.tasks().map((task) => task.type)).toEqual(["vzclone", "vzstart"]);
    expect(bed.pve.containers().filter(({ template }) => !template)).toMatchObject([{ vmid, status: "running" }]);
  },
);

test("with time to spare it ends what it has, and takes nothing new", async () => {
  const first = await bed.startProcess({ FLEET_SHUTDOWN_SECONDS: "60" });
  const held = bed.pve.faults.task({ type: "vzclone", hold: true });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await until(() => held.hits > 0, "a vzclone");
  const gone = first.end("SIGINT");
  await until(() => first.output().includes('"closing"'), "the worker to close");
  const late = await bed.fleet.provision({ template: "cmux-base" });
  held.release();
  await handle.result({ timeoutMs: 60_000 });
  expect(await gone).toBe(0);
  expect((await late.status()).status).toBe("queued");
  expect(await late.cancel()).toBe(true);
  await bed.startProcess();
  await failure(late.result({ timeoutMs: 60_000 }), "canceled");
});

test("an idle worker goes at once, and one that is told twice goes once", async () => {
  const { worker, soonMs } = await start("60");
  const told = performance.now();
  expect(await Promise.all([worker.end("SIGTERM"), worker.end("SIGTERM")])).toEqual([0, 0]);
  expect(performance.now() - told).toBeLessThan(soonMs);
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
