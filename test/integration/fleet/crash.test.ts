/** Workers that die by SIGKILL in the middle: another one goes on where they were, and PVE's truth equals the records. */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { Handle } from "../../../producers/index.ts";
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

/** Begins what goes on without its command and holds a lock; says when what was begun before has that, which who is being killed may for a moment. */
const LEAVES = "exec 8>>held; flock -w 5 8 || echo met >> met; sleep 3600 >/dev/null 2>&1 &";
const isHeld = (vmid: number) => spawnSync("flock", ["-n", join(rootOf(vmid), "held"), "true"]).status !== 0;

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

test("in everything else at once: each ends as it should, none is done twice, and nothing begun before runs on", async () => {
  const first = await bed.startProcess();
  const make = (template = "cmux-base") => provisionOne(bed.fleet, { template });
  const [once, again, snap, gone, deaf] = await Promise.all([make(), make(), make(), make(), make("deaf")]);
  const count = `${LEAVES} echo ran >> ran.log; until test -e go; do read -t 0.05 < <(:) || true; done; cat ran.log`;
  const setup = ["echo a >> s", `${LEAVES} echo b >> s; test -e go || exec tail -f s`];
  const [ready, built] = [
    await bed.fleet.provision({ template: "cmux-base", setup }),
    await bed.fleet.build({ name: "app", from: { template: "cmux-base" }, setup, test: "test ! -e met" }),
  ];
  // The step is recorded before its command runs.
  const inSetup = async (handle: Handle<"provision"> | Handle<"build">) => {
    const { vmid = 0 } = (await handle.status()).sandbox;
    const log = join(rootOf(vmid), "s");
    return existsSync(log) && readFileSync(log, "utf8") === "a\nb\n" ? vmid : null;
  };
  const [settingUp, building] = await Promise.all([
    until(() => inSetup(ready), "the setup"),
    until(() => inSetup(built), "the build"),
  ]);
  const handles = {
    once: await bed.fleet.exec({ sandboxId: once.sandboxId, command: count }),
    again: await bed.fleet.exec({ sandboxId: again.sandboxId, command: count, idempotent: true }),
    snapshot: await bed.fleet.snapshot({ sandboxId: snap.sandboxId, name: "cut-short" }),
    destroy: await bed.fleet.destroy({ sandboxId: gone.sandboxId }),
    shutdown: await bed.fleet.power({ sandboxId: deaf.sandboxId, action: "shutdown", graceSec: 20 }),
  };
  await Promise.all([
    ...[once, again].map(({ vmid }) => until(() => existsSync(join(rootOf(vmid), "ran.log")), "the command")),
    ...["vzsnapshot", "vzdestroy", "vzshutdown"].map((type) => running((task) => task.type === type)),
  ]);
  expect([once.vmid, again.vmid, settingUp, building].map(isHeld)).toEqual([true, true, true, true]);
  await first.end("SIGKILL");
  // The next runs need not wait.
  for (const vmid of [again.vmid, settingUp, building]) writeFileSync(join(rootOf(vmid), "go"), "");
  await bed.startProcess();
  await failure(handles.once.result({ timeoutMs: 60_000 }), "exec_interrupted");
  expect((await handles.again.result({ timeoutMs: 60_000 })).stdout).toBe("ran\nran\n");
  await handles.snapshot.result({ timeoutMs: 60_000 });
  await handles.destroy.result({ timeoutMs: 60_000 });
  expect(await handles.shutdown.result({ timeoutMs: 60_000 })).toEqual({ state: "stopped", changed: true });
  await ready.result({ timeoutMs: 60_000 });
  await built.result({ timeoutMs: 60_000 });
  expect(readFileSync(join(rootOf(once.vmid), "ran.log"), "utf8")).toBe("ran\n");
  for (const vmid of [settingUp, building]) expect(readFileSync(join(rootOf(vmid), "s"), "utf8")).toBe("a\nb\nb\n");
  // What a command that ended well has left is its own affair.
  expect([again.vmid, settingUp].map(isHeld)).toEqual([true, true]);
  expect([again.vmid, settingUp].map((vmid) => existsSync(join(rootOf(vmid), "met")))).toEqual([false, false]);
  await until(() => !isHeld(once.vmid), "the end of what an interrupted command has begun");
  expect(containerOf(bed, snap.vmid)?.snapshots.filter((name) => name !== "current")).toEqual(["cut-short"]);
  expect(containerOf(bed, gone.vmid)).toBeUndefined();
  for (const type of ["vzsnapshot", "vzdestroy", "vzshutdown"]) {
    expect(
      bed.pve.tasks().filter((task) => task.type === type && task.id !== `${building}`),
      type,
    ).toHaveLength(1);
  }
});
