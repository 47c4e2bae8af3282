import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createTaskWatcher, type TaskWatcher } from "../../../workers/pve/task-watcher.ts";
import { Upid } from "../../../workers/pve/upid.ts";
import { call, failure, node, type StandIn, startStandIn, vmid } from "./stand-in.ts";

let standIn: StandIn;
let tasks: TaskWatcher;
beforeAll(async () => {
  standIn = await startStandIn();
  tasks = createTaskWatcher(standIn.api);
});
afterAll(async () => {
  await tasks.close();
  await standIn[Symbol.asyncDispose]();
});

const end = (upid: Upid) => tasks.wait(upid, { signal: AbortSignal.timeout(60_000), kind: "any" });

/** A container of this test's own. */
async function cloned(id: number) {
  const stamp = { hostname: `c${id}`, description: "a stamp, with commas = and\nlines" };
  await end(await standIn.api.lxc(node("pve1"), vmid(9001)).clone({ newid: vmid(id), ...stamp }, call()));
  return standIn.api.lxc(node("pve1"), vmid(id));
}

describe("a container", () => {
  it("lives through the typed calls", async () => {
    const lxc = await cloned(20_001);
    expect(await lxc.config(call())).toMatchObject({ hostname: "c20001", memory: expect.any(Number) });
    expect((await lxc.config(call())).description?.trimEnd()).toBe("a stamp, with commas = and\nlines");
    await lxc.setConfig({ memory: 768, cores: 2, onboot: true, tags: "fleet;test" }, call());
    expect(await lxc.config(call())).toMatchObject({ memory: 768, cores: 2, onboot: true, tags: "fleet;test" });
    await lxc.setConfig({ delete: "onboot" }, call());
    expect((await lxc.config(call())).onboot).toBeUndefined();
    expect(await lxc.interfaces(call())).toBeNull();

    await end(await lxc.start(call()));
    expect(await lxc.status(call())).toMatchObject({ status: "running", vmid: 20_001 });
    expect(await failure(lxc.start(call()))).toMatchObject({ code: "already_running", facts: { vmid: 20_001 } });
    expect(await failure(lxc.destroy({}, call()))).toMatchObject({ code: "container_running" });
    await end(await lxc.shutdown({ timeoutSec: 10, forceStop: true }, call()));
    expect(await failure(lxc.stop({}, call()))).toMatchObject({ code: "already_stopped" });
    expect((await lxc.status(call())).status).toBe("stopped");

    await end(await lxc.destroy({ purge: true, force: true }, call()));
    expect(await failure(lxc.config(call()))).toMatchObject({ code: "container_missing" });
  });

  it("refuses a change to a config that has changed since", async () => {
    const lxc = await cloned(20_002);
    const { digest } = await lxc.config(call());
    await lxc.setConfig({ memory: 700, digest }, call());
    expect(await failure(lxc.setConfig({ memory: 701, digest }, call()))).toMatchObject({ code: "config_changed" });
  });

  it("has snapshots", async () => {
    const lxc = await cloned(20_003);
    expect(await lxc.feature("snapshot", {}, call())).toBe(true);
    expect(await lxc.snapshots(call())).toEqual([]);
    await end(await lxc.snapshot("before", { description: "first one" }, call()));
    expect(await lxc.snapshots(call())).toMatchObject([{ name: "before", snaptime: expect.any(Number) }]);
    const again = await failure(lxc.snapshot("before", {}, call()).then(end));
    expect(again).toMatchObject({ code: "snapshot_exists", facts: { snapshot: "before" } });
    await end(await lxc.rollback("before", {}, call()));
    await end(await lxc.deleteSnapshot("before", {}, call()));
    const gone = await failure(lxc.rollback("before", {}, call()).then(end));
    expect(gone).toMatchObject({ code: "snapshot_not_found", facts: { snapshot: "before", vmid: 20_003 } });
  });

  it("grows, and becomes a template", async () => {
    const lxc = await cloned(20_004);
    await end(await lxc.resize("rootfs", "+1G", call()));
    expect(await failure(lxc.resize("rootfs", "1G", call()))).toMatchObject({ code: "invalid_input" });
    await lxc.firewallOptions({ enable: true, ipfilter: true, macfilter: true, policy_in: "ACCEPT" }, call());
    await lxc.template(call());
    await standIn.pve.waitForTask(({ type }) => type === "vztemplate", AbortSignal.timeout(60_000));
    expect((await lxc.config(call())).template).toBe(true);
  });

  it("of a taken number is refused with the number, one that is being cloned with its lock", async () => {
    const source = standIn.api.lxc(node("pve2"), vmid(9002));
    const taken = await failure(source.clone({ newid: vmid(9001) }, call()));
    expect(taken).toMatchObject({ code: "vmid_taken", facts: { taken: 9001, takenOn: "pve1", source: 9002 } });
    standIn.pve.faults.lock(9002, "disk");
    const locked = await failure(source.clone({ newid: vmid(20_005) }, call()));
    expect(locked).toMatchObject({ code: "source_locked", facts: { lock: "disk", source: 9002 } });
    standIn.pve.faults.lock(9002, null);
  });

  it("that is not there is missing, only in the task where PVE notices late", async () => {
    const lxc = standIn.api.lxc(node("pve1"), vmid(8888));
    expect(await failure(lxc.clone({ newid: vmid(20_006) }, call()))).toMatchObject({ code: "template_not_found" });
    expect(await failure(lxc.start(call()).then(end))).toMatchObject({ code: "container_missing" });
  });
});

describe("the cluster", () => {
  it("is read", async () => {
    expect(await standIn.api.version(call())).toMatchObject({ version: "8.4.1" });
    expect((await standIn.api.clusterStatus(call())).filter(({ type }) => type === "node")).toHaveLength(3);
    const nodes = await standIn.api.clusterResources({ type: "node" }, call());
    expect(nodes.map((each) => each.node).sort()).toEqual(["pve1", "pve2", "pve3"]);
    expect(await standIn.api.list(node("pve1"), call())).toContainEqual(
      expect.objectContaining({ vmid: 9001, template: true, status: "stopped" }),
    );
    expect(await standIn.api.storages(node("pve1"), call())).toContainEqual(
      expect.objectContaining({ storage: "local-lvm", type: "lvmthin", total: expect.any(Number) }),
    );
    expect(await standIn.api.storageConfig(call())).toContainEqual(
      expect.objectContaining({ storage: "ceph", type: "rbd", content: "images,rootdir" }),
    );
    expect(Array.isArray(await standIn.api.pools(call()))).toBe(true);
    expect(await standIn.api.nodeDns(node("pve1"), call())).toMatchObject({ dns1: expect.any(String) });
    expect(await standIn.api.nodeStatus(node("pve1"), call())).toMatchObject({ memory: { total: expect.any(Number) } });
    expect(await standIn.api.permissions("/vms", call())).toContain("VM.Audit");
  });

  it("does not know every node", async () => {
    expect(await failure(standIn.api.list(node("nope"), call()))).toMatchObject({ code: "node_unreachable" });
  });
});

describe("a task", () => {
  it("is listed, read, and has a log", async () => {
    const upid = await standIn.api.lxc(node("pve3"), vmid(9003)).clone({ newid: vmid(20_010) }, call());
    expect(await standIn.api.tasks.status(upid, call())).toMatchObject({ type: "vzclone", id: "9003" });
    await end(upid);
    const listed = await standIn.api.tasks.list(node("pve3"), { source: "all", limit: 5 }, call());
    expect(listed).toContainEqual(expect.objectContaining({ upid, status: "OK" }));
    expect((await standIn.api.tasks.log(upid, { limit: 100 }, call())).at(-1)).toBe("TASK OK");
  });

  it("that is stopped says so", async () => {
    const upid = await standIn.api.lxc(node("pve3"), vmid(9003)).clone({ newid: vmid(20_011), full: true }, call());
    const ending = failure(end(upid));
    await standIn.api.tasks.stop(upid, call());
    expect(await ending).toMatchObject({ code: "task_failed", facts: { interrupted: true } });
  });

  it("that PVE does not know is lost, and its log is one line", async () => {
    const upid = Upid.parse("UPID:pve1:0000FFFF:000363BB:6B04868B:vzstop:201:root@pam!full:");
    expect(await failure(standIn.api.tasks.status(upid, call()))).toMatchObject({ code: "task_lost" });
    expect(await standIn.api.tasks.log(upid, {}, call())).toHaveLength(1);
    expect(await failure(tasks.wait(upid, call()))).toMatchObject({ code: "task_lost", facts: { upid } });
  });

  it("of a backup tells in its log why it failed, and is none for what is on another node", async () => {
    const archive = { storage: "local", notes: "n" };
    const elsewhere = standIn.api.backup(node("pve2"), { vmid: vmid(9001), ...archive }, call());
    expect(await failure(elsewhere)).toMatchObject({ code: "container_missing" });
    const clone = await standIn.api.lxc(node("pve1"), vmid(9001)).clone({ newid: vmid(20_020), full: true }, call());
    const upid = await standIn.api.backup(node("pve1"), { vmid: vmid(9001), ...archive }, call());
    expect(await failure(end(upid))).toMatchObject({
      code: "container_locked",
      text: "job errors: CT is locked (disk)",
    });
    await end(clone);
  });
});
