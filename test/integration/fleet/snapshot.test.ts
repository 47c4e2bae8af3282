/** Snapshots of sandboxes, and sandboxes of snapshots. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import {
  type Bed,
  containerOf,
  failure,
  firstFailure,
  provisionOne,
  run,
  startBed,
  until,
  useUpAttempts,
  useUpTime,
} from "./harness.ts";

let bed: Bed;
let box: Awaited<ReturnType<typeof provisionOne>>;
beforeAll(async () => {
  bed = await startBed({
    rights: "least",
    pve: {
      nodes: [
        {
          name: "pve1",
          storages: [
            { name: "local", type: "dir" },
            { name: "local-lvm", type: "lvmthin" },
            { name: "tank", type: "zfspool" },
          ],
        },
      ],
      templates: [{ name: "cmux-base" }, { name: "on-dir", storage: "local" }, { name: "on-zfs", storage: "tank" }],
    },
  });
  box = await provisionOne(bed.fleet);
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const snapshotsOf = (vmid: number) => containerOf(bed, vmid)?.snapshots.filter((name) => name !== "current") ?? [];

test("takes a snapshot, and a sandbox of it has what was in the first one", async () => {
  const { sandboxId, node, vmid } = await provisionOne(bed.fleet);
  await run(bed.fleet, "exec", { sandboxId, command: "echo kept > kept.txt" });
  const taken = await run(bed.fleet, "snapshot", { sandboxId, name: "before-work", description: "as it was" });
  expect(taken).toEqual({
    snapshotId: expect.stringMatching(/^snap_/),
    name: "before-work",
    node,
    vmid,
    removed: [],
    execd: true,
  });
  expect(snapshotsOf(vmid)).toEqual(["before-work"]);
  const copy = await provisionOne(bed.fleet, { template: taken.snapshotId });
  expect(copy).toMatchObject({ node });
  expect(copy.vmid).not.toBe(vmid);
  expect(copy.sandboxId).not.toBe(sandboxId);
  const { stdout } = await run(bed.fleet, "exec", { sandboxId: copy.sandboxId, command: "cat kept.txt" });
  expect(stdout).toBe("kept\n");
  expect(cloneOf(copy.vmid)).toMatchObject({ full: "0", snapname: "before-work" });
  // With the sandbox its snapshots go.
  await run(bed.fleet, "destroy", { sandboxId });
  await failure(provisionOne(bed.fleet, { template: taken.snapshotId }), "snapshot_not_found");
});

const cloneOf = (vmid: number) =>
  bed.pve.log().find(({ path, params }) => path.endsWith("/clone") && params["newid"] === String(vmid))?.params;

describe("a branch", () => {
  test("is so many sandboxes of it as it stands, linked where they can live on without the snapshot, which goes", async () => {
    const fleet = bed.client({ team: "red" });
    const source = await provisionOne(fleet, {
      env: { KEPT: "yes" },
      metadata: { run: "7" },
      services: [{ name: "web", port: 80 }],
      memoryMib: 768,
    });
    const { sandboxId, vmid } = source;
    await run(fleet, "exec", { sandboxId, command: "echo branched > log.txt" });
    const batch = await fleet.branch({ sandboxId, count: 3 }, { id: "three" });
    const { counts } = await batch.result({ timeoutMs: 60_000 });
    expect(counts).toMatchObject({ succeeded: 3, failed: 0 });
    for await (const outcome of batch.results()) {
      if (!outcome.ok) throw outcome.error;
      const copy = await fleet.sandboxes.get(outcome.sandboxId);
      expect(copy).toMatchObject({ state: "running", metadata: { run: "7" }, services: [{ name: "web", port: 80 }] });
      expect(cloneOf(copy.vmid ?? 0)).toMatchObject({ full: "0" });
      expect(containerOf(bed, copy.vmid ?? 0)?.config).toMatchObject({ memory: "768" });
      const command = "cat log.txt; echo $KEPT";
      expect(await run(fleet, "exec", { sandboxId: copy.id, command })).toMatchObject({ stdout: "branched\nyes\n" });
    }
    await until(() => snapshotsOf(vmid).length === 0, "the end of its snapshot");
    // Asked for again it is the same branch, also now.
    const again = await fleet.branch({ sandboxId, count: 3 }, { id: "three" });
    expect(await again.counts()).toMatchObject({ total: 3, succeeded: 3 });
    await run(fleet, "destroy", { sandboxId });
    await failure(bed.client({ team: "blue" }).branch({ sandboxId, count: 1 }), "sandbox_not_found");
  });

  test("of a sandbox with an own address and no exec daemon are machines of their own", async () => {
    const network = { ip: "127.0.0.77/8" };
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { waitFor: "address", network });
    bed.pve.faults.edit(vmid, {
      net1: "name=eth1,bridge=vmbr0,hwaddr=BC:24:11:0A:0B:0C,ip=10.9.9.9/24,gw=10.9.9.1,type=veth",
    });
    const batch = await bed.fleet.branch({ sandboxId, count: 1 });
    for await (const outcome of batch.results()) {
      if (!outcome.ok) throw outcome.error;
      const copy = await bed.fleet.sandboxes.get(outcome.sandboxId);
      const { net0, net1 } = containerOf(bed, copy.vmid ?? 0)?.config ?? {};
      expect([net0, net1]).toEqual([expect.stringContaining("ip=dhcp"), expect.stringMatching(/ip=dhcp(?!.*gw=)/)]);
      expect(copy.address).not.toBe("127.0.0.77");
      await run(bed.fleet, "destroy", { sandboxId: copy.id });
    }
    await run(bed.fleet, "destroy", { sandboxId });
  });

  test("are full copies on ZFS, and the snapshot goes also when its producer has died before the batch", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "on-zfs" });
    const batch = await bed.fleet.branch({ sandboxId, count: 1 });
    expect((await batch.result({ timeoutMs: 60_000 })).counts).toMatchObject({ succeeded: 1 });
    for await (const outcome of batch.results()) {
      const copy = outcome.ok ? await bed.fleet.sandboxes.get(outcome.sandboxId) : undefined;
      expect(cloneOf(copy?.vmid ?? 0)).toMatchObject({ full: "1" });
    }
    const { snapshotId } = await run(bed.fleet, "snapshot", { sandboxId, branch: "never-begun" });
    await until(() => snapshotsOf(vmid).length === 1, "the end of the first one");
    await bed.redis.hset(bed.keys.snapshot(snapshotId), "createdAt", Date.now() - 3_600_000);
    await until(() => snapshotsOf(vmid).length === 0, "the end of the one that nobody needs");
    await until(async () => (await bed.redis.hlen(bed.keys.branches)) === 0, "its record's end");
  });
});

test("makes up a name that PVE takes, another each time", async () => {
  const { sandboxId } = box;
  const { name: one } = await run(bed.fleet, "snapshot", { sandboxId });
  const { name: two } = await run(bed.fleet, "snapshot", { sandboxId });
  expect(one).not.toBe(two);
  expect(snapshotsOf(box.vmid)).toEqual(expect.arrayContaining([one, two]));
});

const readLog = async (sandboxId: string) =>
  (await run(bed.fleet, "exec", { sandboxId, command: "cat log.txt" })).stdout;

describe("restore", () => {
  test("takes a running sandbox back, disk and configuration, and it runs on with its own token", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { memoryMib: 512, diskGib: 4 });
    await run(bed.fleet, "exec", { sandboxId, command: "echo one > log.txt" });
    const { snapshotId } = await run(bed.fleet, "snapshot", { sandboxId });
    await run(bed.fleet, "exec", { sandboxId, command: "echo two > log.txt" });
    await run(bed.fleet, "configure", { sandboxId, memoryMib: 2_048 });
    expect(await run(bed.fleet, "restore", { sandboxId, snapshotId })).toMatchObject({ vmid, state: "running" });
    expect(await readLog(sandboxId)).toBe("one\n");
    expect(containerOf(bed, vmid)?.config).toMatchObject({ memory: "512" });
    const reserved = await bed.redis.hget(bed.keys.reserved("pve1"), sandboxId);
    expect(JSON.parse(reserved ?? "{}")).toMatchObject({ memoryMib: 512 });
    expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ state: "running" });
  });

  test("leaves a stopped one stopped", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    const { snapshotId } = await run(bed.fleet, "snapshot", { sandboxId });
    await run(bed.fleet, "power", { sandboxId, action: "stop" });
    expect(await run(bed.fleet, "restore", { sandboxId, snapshotId })).toMatchObject({ state: "stopped" });
    expect(containerOf(bed, vmid)).toMatchObject({ status: "stopped" });
    expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ state: "stopped" });
  });

  test.each([
    ["rollback", { method: "POST", path: "/rollback$" }],
    ["start", { method: "POST", path: "/status/start$" }],
  ])("a lost reply of its %s: healed, and it runs", async (_, request) => {
    const { snapshotId } = await run(bed.fleet, "snapshot", { sandboxId: box.sandboxId });
    bed.pve.faults.request({ ...request, kind: "lose-reply", as: 596 });
    const handle = await bed.fleet.restore({ sandboxId: box.sandboxId, snapshotId });
    expect(await handle.result({ timeoutMs: 60_000 })).toMatchObject({ state: "running" });
    expect(containerOf(bed, box.vmid)).toMatchObject({ status: "running" });
  });

  test("refused before anything is touched: another's snapshot, one that somebody replaced, and what ZFS can't", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "on-zfs" });
    const [older, newer] = [
      await run(bed.fleet, "snapshot", { sandboxId, name: "older" }),
      await run(bed.fleet, "snapshot", { sandboxId, name: "newer" }),
    ];
    const tries = [
      [{ sandboxId: box.sandboxId, snapshotId: older.snapshotId }, "snapshot_not_found"],
      [{ sandboxId, snapshotId: older.snapshotId }, "snapshot_blocked"],
    ] as const;
    for (const [input, code] of tries) await failure(run(bed.fleet, "restore", input), code);
    expect(bed.pve.tasks().filter(({ type, id }) => type === "vzrollback" && id === String(vmid))).toEqual([]);
    expect(containerOf(bed, vmid)).toMatchObject({ status: "running" });
    expect(await run(bed.fleet, "restore", { sandboxId, snapshotId: newer.snapshotId })).toMatchObject({
      name: "newer",
    });
  });
});

describe("retention", () => {
  test("the oldest go when there are too many, and the result tells which", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    const [first, second] = [
      await run(bed.fleet, "snapshot", { sandboxId }),
      await run(bed.fleet, "snapshot", { sandboxId }),
    ];
    const third = await run(bed.fleet, "snapshot", { sandboxId, keepLast: 1 });
    expect(third.removed).toEqual([first.snapshotId, second.snapshotId]);
    expect(snapshotsOf(vmid)).toEqual([third.name]);
    expect(await bed.fleet.sandboxes.snapshots(sandboxId)).toMatchObject([{ id: third.snapshotId }]);
  });

  test("one whose time is up is deleted by itself", async () => {
    const {
      snapshotId,
      name,
      expiresAt = 0,
    } = await run(bed.fleet, "snapshot", {
      sandboxId: box.sandboxId,
      maxAgeSeconds: 3_600,
    });
    expect(expiresAt - Date.now()).toBeGreaterThan(3_500_000);
    await bed.redis.zadd(bed.keys.snapshotExpiries, Date.now(), snapshotId);
    await until(() => !snapshotsOf(box.vmid).includes(name), "its end in PVE");
    await until(async () => (await bed.redis.zscore(bed.keys.snapshotExpiries, snapshotId)) === null, "and in Redis");
  });
});

describe("refused", () => {
  test("a name that is taken", async () => {
    await run(bed.fleet, "snapshot", { sandboxId: box.sandboxId, name: "twice" });
    await failure(run(bed.fleet, "snapshot", { sandboxId: box.sandboxId, name: "twice" }), "snapshot_exists");
    expect(snapshotsOf(box.vmid).filter((name) => name === "twice")).toHaveLength(1);
  });

  test("a storage without snapshots", async () => {
    const { sandboxId } = await provisionOne(bed.fleet, { template: "on-dir", clone: "full" });
    await failure(run(bed.fleet, "snapshot", { sandboxId }), "snapshot_unsupported");
  });

  test("sandboxes that are unknown or gone", async () => {
    await failure(bed.fleet.snapshot({ sandboxId: "sbx_0000000000000000" }), "sandbox_not_found");
    const { sandboxId } = await provisionOne(bed.fleet);
    await run(bed.fleet, "destroy", { sandboxId });
    await failure(bed.fleet.snapshot({ sandboxId }), "sandbox_gone");
  });
});

const TAKE = { method: "POST", path: "/snapshot$" };

describe("bad weather", () => {
  test.each([
    ["executed, reply lost", () => bed.pve.faults.request({ ...TAKE, kind: "lose-reply", as: 596 }), "outcome_unknown"],
    ["not executed, connection cut", () => bed.pve.faults.request({ ...TAKE, kind: "cut" }), "outcome_unknown"],
    ["HTML", () => bed.pve.faults.request({ ...TAKE, kind: "html" }), "outcome_unknown"],
    ["a failed task", () => bed.pve.faults.task({ type: "vzsnapshot", text: "lvcreate failed" }), "task_failed"],
    [
      "a locked container",
      () => bed.pve.faults.request({ ...TAKE, kind: "refuse", status: 500, text: "CT is locked (backup)" }),
      "container_locked",
    ],
  ] as const)("%s: healed, with one snapshot", async (_, arm, code) => {
    arm();
    const before = snapshotsOf(box.vmid);
    const handle = await bed.fleet.snapshot({ sandboxId: box.sandboxId });
    expect(await firstFailure(handle)).toBe(code);
    const { name } = await handle.result({ timeoutMs: 60_000 });
    expect(snapshotsOf(box.vmid).filter((one) => !before.includes(one))).toEqual([name]);
  });

  test("a task that dies: what it left is removed by force once its lock is gone, and the snapshot taken anew", async () => {
    bed.pve.faults.task({ type: "vzsnapshot", text: "worker died", leaveLocks: true });
    const handle = await bed.fleet.snapshot({ sandboxId: box.sandboxId, name: "anew" });
    expect(await firstFailure(handle)).toBe("task_failed");
    expect(containerOf(bed, box.vmid)?.lock).toBe("snapshot");
    expect(snapshotsOf(box.vmid)).toContain("anew");
    bed.pve.faults.lock(box.vmid, null);
    await handle.result({ timeoutMs: 20_000 });
    expect(snapshotsOf(box.vmid)).toContain("anew");
    const removed = bed.pve.log().find(({ method, path }) => method === "DELETE" && path.endsWith("/snapshot/anew"));
    expect(removed?.params).toMatchObject({ force: "1" });
  });

  test("without end: failed, and no snapshot stays", async () => {
    bed.pve.faults.task({ type: "vzsnapshot", text: "lvcreate failed", times: 2 });
    const handle = await bed.fleet.snapshot({ sandboxId: box.sandboxId, name: "never" });
    await useUpAttempts(bed, handle, 6);
    await failure(handle.result({ timeoutMs: 60_000 }), "task_failed");
    expect(snapshotsOf(box.vmid)).not.toContain("never");
  });

  test("out of time: failed, and no snapshot stays", async () => {
    bed.pve.faults.task({ type: "vzsnapshot", text: "lvcreate failed" });
    const handle = await bed.fleet.snapshot({ sandboxId: box.sandboxId, name: "late" });
    await useUpTime(bed, handle, 300_000);
    await failure(handle.result({ timeoutMs: 60_000 }), "timeout");
    expect(snapshotsOf(box.vmid)).not.toContain("late");
  });
});
