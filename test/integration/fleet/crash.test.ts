/** Workers that die by SIGKILL in the middle: another one goes on where they were, and PVE's truth equals the records. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { TaskEntry } from "../../pve/views.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeEach(async () => {
  bed = await startBed({
    workers: "none",
    pve: {
      nodes: 1,
      templates: [
        { name: "cmux-base", vmid: 9_001 },
        { name: "deaf", vmid: 9_002, guest: { ignoresShutdown: true } },
      ],
      // Long enough to be killed in, all of them.
      timings: { cloneLinked: 8_000, start: 8_000, snapshot: 10_000, destroy: 10_000 },
    },
    env: { FLEET_NODE_SLOTS: "8" },
  });
});
afterEach(() => bed.close());

const TAKEOVER_MS = 10_000;

const running = (fits: (task: TaskEntry) => boolean) =>
  until(() => bed.pve.tasks().find((task) => task.endedAt === undefined && fits(task)), "the task");

const rootOf = (vmid: number) => containerOf(bed, vmid)?.root ?? "";

test("in the clone wait: another worker takes over within ten seconds, with one clone", async () => {
  const first = await bed.startProcess();
  const held = bed.pve.faults.task({ type: "vzclone", hold: true });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await running(({ type }) => type === "vzclone");
  await bed.startProcess();
  await first.end("SIGKILL");
  const killedAt = performance.now();
  held.release();
  const { vmid, sandboxId } = await handle.result({ timeoutMs: 60_000 });
  const recoveredMs = performance.now() - killedAt;
  console.log(`killed in the clone wait: result after ${Math.round(recoveredMs)} ms`);
  // The start of 0.8 s comes after the takeover.
  expect(recoveredMs).toBeLessThan(TAKEOVER_MS + 1_500);
  expect(bed.pve.tasks().map(({ type }) => type)).toEqual(["vzclone", "vzstart"]);
  expect(bed.pve.containers().filter(({ template }) => !template)).toMatchObject([{ vmid, status: "running" }]);
  expect(await run(bed.fleet, "exec", { sandboxId, command: "true" })).toMatchObject({ exitCode: 0 });
});

test("in the start wait: the restarted worker takes over, with one start", async () => {
  const first = await bed.startProcess();
  const handle = await bed.fleet.provision({ template: "cmux-base", setup: ["echo set-up >> setup.log"] });
  await running(({ type }) => type === "vzstart");
  await first.end("SIGKILL");
  // Node's own start, which takes seconds on a machine that is busy, is none of the takeover.
  await bed.startProcess();
  const upAt = performance.now();
  const { vmid } = await handle.result({ timeoutMs: 60_000 });
  console.log(`killed in the start wait: result ${Math.round(performance.now() - upAt)} ms after that`);
  expect(performance.now() - upAt).toBeLessThan(TAKEOVER_MS + 1_500);
  expect(bed.pve.tasks().map(({ type }) => type)).toEqual(["vzclone", "vzstart"]);
  expect(readFileSync(join(rootOf(vmid), "setup.log"), "utf8")).toBe("set-up\n");
  expect(bed.pve.containers().filter(({ template }) => !template)).toHaveLength(1);
});

test("in everything else at once: each ends as it should, and none is done twice", async () => {
  const first = await bed.startProcess();
  const make = (template = "cmux-base") => provisionOne(bed.fleet, { template });
  const [once, again, snap, gone, deaf] = await Promise.all([make(), make(), make(), make(), make("deaf")]);
  const count = "echo ran >> ran.log; until test -e go; do read -t 0.05 < <(:) || true; done; cat ran.log";
  const handles = {
    once: await bed.fleet.exec({ sandboxId: once.sandboxId, command: count }),
    again: await bed.fleet.exec({ sandboxId: again.sandboxId, command: count, idempotent: true }),
    snapshot: await bed.fleet.snapshot({ sandboxId: snap.sandboxId, name: "cut-short" }),
    destroy: await bed.fleet.destroy({ sandboxId: gone.sandboxId }),
    shutdown: await bed.fleet.power({ sandboxId: deaf.sandboxId, action: "shutdown", graceSec: 20 }),
    setup: await bed.fleet.provision({
      template: "cmux-base",
      setup: ["echo a >> s", "echo b >> s; test -e go || exec tail -f s"],
    }),
  };
  // The step is recorded before its command runs.
  const inSetup = async () => {
    const { vmid = 0 } = (await handles.setup.status()).sandbox;
    const log = join(rootOf(vmid), "s");
    return existsSync(log) && readFileSync(log, "utf8") === "a\nb\n";
  };
  await Promise.all([
    ...[once, again].map(({ vmid }) => until(() => existsSync(join(rootOf(vmid), "ran.log")), "the command")),
    ...["vzsnapshot", "vzdestroy", "vzshutdown"].map((type) => running((task) => task.type === type)),
    until(inSetup, "the setup"),
  ]);
  await first.end("SIGKILL");
  const { vmid: settingUp = 0 } = (await handles.setup.status()).sandbox;
  // The next runs need not wait.
  for (const vmid of [again.vmid, settingUp]) writeFileSync(join(rootOf(vmid), "go"), "");
  await bed.startProcess();
  await failure(handles.once.result({ timeoutMs: 60_000 }), "exec_interrupted");
  expect((await handles.again.result({ timeoutMs: 60_000 })).stdout).toBe("ran\nran\n");
  await handles.snapshot.result({ timeoutMs: 60_000 });
  await handles.destroy.result({ timeoutMs: 60_000 });
  expect(await handles.shutdown.result({ timeoutMs: 60_000 })).toEqual({ state: "stopped", changed: true });
  await handles.setup.result({ timeoutMs: 60_000 });
  expect(readFileSync(join(rootOf(once.vmid), "ran.log"), "utf8")).toBe("ran\n");
  expect(readFileSync(join(rootOf(settingUp), "s"), "utf8")).toBe("a\nb\nb\n");
  expect(containerOf(bed, snap.vmid)?.snapshots.filter((name) => name !== "current")).toEqual(["cut-short"]);
  expect(containerOf(bed, gone.vmid)).toBeUndefined();
  for (const type of ["vzsnapshot", "vzdestroy", "vzshutdown"]) {
    expect(
      bed.pve.tasks().filter((task) => task.type === type),
      type,
    ).toHaveLength(1);
  }
});
