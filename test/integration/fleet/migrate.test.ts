/** Moving sandboxes between nodes, and draining a node so. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  const thin = { name: "local-lvm", type: "lvmthin", sizeGib: 50 } as const;
  const zfs = { name: "tank", type: "zfspool", sizeGib: 50 } as const;
  bed = await startBed({
    rights: "least",
    pve: {
      nodes: [
        { name: "pve1", storages: [thin, zfs] },
        { name: "pve2", storages: [thin, zfs] },
        { name: "pve3", storages: [thin] },
      ],
      templates: [
        { node: "pve1", vmid: 9_001 },
        { node: "pve1", vmid: 9_002, name: "on-zfs", storage: "tank" },
        { node: "pve1", vmid: 9_003, name: "deaf", guest: { ignoresShutdown: true } },
      ],
    },
  });
});
afterAll(() => bed.close());

const moves = (vmid: number) => bed.pve.tasks().filter(({ type, id }) => type === "vzmigrate" && id === String(vmid));
const exec = async (sandboxId: string, command: string) => run(bed.fleet, "exec", { sandboxId, command });

test("a running one is there with its files, URLs and commands, and back again", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { services: [{ name: "web", port: 8_000 }] });
  await exec(sandboxId, "echo kept >note");
  const moved = await run(bed.fleet, "migrate", { sandboxId, target: "pve2" });
  expect(moved).toMatchObject({ from: "pve1", node: "pve2", vmid, state: "running" });
  expect(containerOf(bed, vmid)).toMatchObject({ node: "pve2", status: "running" });
  expect(await exec(sandboxId, "cat note")).toMatchObject({ stdout: "kept\n" });
  expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ node: "pve2", services: [{ name: "web" }] });
  expect(await bed.redis.hexists(bed.keys.reserved("pve1"), sandboxId)).toBe(0);
  expect(await bed.redis.hexists(bed.keys.reserved("pve2"), sandboxId)).toBe(1);
  expect(await run(bed.fleet, "migrate", { sandboxId, target: "pve2" })).toMatchObject({ from: "pve2", node: "pve2" });
  expect(moves(vmid)).toHaveLength(1);
  await run(bed.fleet, "power", { sandboxId, action: "stop" });
  expect(await run(bed.fleet, "migrate", { sandboxId, target: "pve1" })).toMatchObject({ state: "stopped" });
  expect(containerOf(bed, vmid)).toMatchObject({ node: "pve1", status: "stopped" });
  await run(bed.fleet, "destroy", { sandboxId });
});

test("a lost reply moves it once", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  bed.pve.faults.request({ method: "POST", path: "/migrate$", kind: "lose-reply", as: 596 });
  const { node } = await run(bed.fleet, "migrate", { sandboxId });
  expect(containerOf(bed, vmid)?.node).toBe(node);
  expect(moves(vmid)).toHaveLength(1);
  expect(await exec(sandboxId, "true")).toMatchObject({ exitCode: 0 });
  await run(bed.fleet, "destroy", { sandboxId });
});

test("canceled in the middle it runs on where it was", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  const held = bed.pve.faults.task({ type: "vzmigrate", hold: true });
  const handle = await bed.fleet.migrate({ sandboxId, target: "pve2" });
  await until(() => held.hits > 0, "the move");
  expect(await handle.cancel()).toBe(true);
  await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
  const { node, state } = await bed.fleet.sandboxes.get(sandboxId);
  expect([node, state]).toEqual([containerOf(bed, vmid)?.node, "running"]);
  expect(await exec(sandboxId, "true")).toMatchObject({ exitCode: 0 });
  for (const one of ["pve1", "pve2"])
    expect(await bed.redis.hexists(bed.keys.reserved(one), sandboxId)).toBe(Number(one === node));
  await run(bed.fleet, "destroy", { sandboxId });
});

test("what PVE does not move is refused before it is shut down, with the way out", async () => {
  const thin = await provisionOne(bed.fleet);
  const zfs = await provisionOne(bed.fleet, { template: "on-zfs" });
  const snapshot = await run(bed.fleet, "snapshot", { sandboxId: thin.sandboxId });
  const snapped = await failure(run(bed.fleet, "migrate", { sandboxId: thin.sandboxId }), "not_movable");
  expect(snapped.text).toContain(`delete them first: ${snapshot.name}`);
  const linked = await failure(run(bed.fleet, "migrate", { sandboxId: zfs.sandboxId }), "not_movable");
  expect(linked.text).toContain("linked clone");
  const unknown = await failure(run(bed.fleet, "migrate", { sandboxId: zfs.sandboxId, target: "pve9" }), "not_movable");
  expect(unknown.text).toContain("linked clone");
  const full = await provisionOne(bed.fleet, { template: "on-zfs", clone: "full" });
  const nowhere = await failure(
    run(bed.fleet, "migrate", { sandboxId: full.sandboxId, target: "pve3" }),
    "not_movable",
  );
  expect(nowhere.text).toContain("pve3: has no storage tank");
  for (const { sandboxId, vmid } of [thin, zfs, full]) {
    expect(moves(vmid)).toEqual([]);
    expect(containerOf(bed, vmid)).toMatchObject({ status: "running" });
    await run(bed.fleet, "destroy", { sandboxId });
  }
});

test("one that can't be shut down stays, and the error says so, though PVE tells it in a log alone", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "deaf" });
  const refused = await failure(
    run(bed.fleet, "migrate", { sandboxId, target: "pve2", graceSec: 1 }),
    "shutdown_refused",
  );
  expect(refused.text).toContain("migration aborted: container did not stop");
  expect(containerOf(bed, vmid)).toMatchObject({ node: "pve1", status: "running" });
  expect((await bed.fleet.sandboxes.get(sandboxId)).state).toBe("running");
  await run(bed.fleet, "destroy", { sandboxId });
});

test("a drain moves what it can, tells what it can't, and goes on when that has ended", async () => {
  const movable = [await provisionOne(bed.fleet), await provisionOne(bed.fleet)];
  const stuck = await provisionOne(bed.fleet, { template: "on-zfs" });
  const drained = bed.fleet.nodes.drain("pve1", { by: "test", migrate: true, timeoutMs: 30_000 });
  const error = await failure(drained, "not_movable");
  expect(error.facts).toMatchObject({ node: "pve1", sandboxes: [stuck.sandboxId] });
  for (const { sandboxId } of movable) {
    expect((await bed.fleet.sandboxes.get(sandboxId)).node).not.toBe("pve1");
    expect(await exec(sandboxId, "true")).toMatchObject({ exitCode: 0 });
  }
  await bed.fleet.nodes.drain("pve1", { by: "test", migrate: true, destroy: true, timeoutMs: 30_000 });
  expect((await bed.fleet.nodes.rest("pve1")).sandboxes).toEqual([]);
  await bed.fleet.nodes.uncordon("pve1");
});

test("a worker that is killed in the middle: another one brings it to its end, moved once", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  await bed.workers?.close();
  const first = await bed.startProcess();
  const held = bed.pve.faults.task({ type: "vzmigrate", hold: true });
  const handle = await bed.fleet.migrate({ sandboxId, target: "pve2" });
  await until(() => held.hits > 0, "the move");
  await first.end("SIGKILL");
  held.release();
  await bed.startProcess();
  expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve2", state: "running" });
  expect(moves(vmid)).toHaveLength(1);
  expect(await exec(sandboxId, "true")).toMatchObject({ exitCode: 0 });
});
