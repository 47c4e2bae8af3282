import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Client } from "../../pve/client.ts";
import { type Pve, startPve } from "../../pve/index.ts";

const TOKEN = "ab".repeat(32);

describe("a container's life", () => {
  let pve: Pve;
  let client: Client;

  beforeAll(async () => {
    // A full clone lasts for as long as a busy machine may need to look at it.
    pve = await startPve({ timings: { timeScale: 0.1, cloneFull: 15_000 } });
    client = new Client(pve);
  });

  afterAll(async () => {
    await client.close();
    await pve.close();
  });

  const find = (vmid: number) => pve.containers().find((container) => container.vmid === vmid);

  it("claims the VMID and locks both ends before the clone answers", async () => {
    const held = pve.faults.task({ type: "vzclone", hold: true });
    const upid = await client.data("POST", "/nodes/pve1/lxc/9001/clone", {
      newid: 200,
      hostname: "cmux-200",
      description: "op",
      full: 1,
    });
    expect(find(200)).toMatchObject({ name: "cmux-200", lock: "create", config: { description: "op\n" } });
    expect(find(9001)?.lock).toBe("disk");
    const second = await client.ask("POST", "/nodes/pve1/lxc/9001/clone", { newid: 201 });
    expect(second).toMatchObject({ status: 500, reason: "CT is locked (disk)" });
    held.release();
    await client.ended(String(upid));
    expect(find(200)?.lock).toBeUndefined();
    expect(find(200)?.config["net0"]).not.toBe(find(9001)?.config["net0"]);
  });

  it("runs, answers, stops and is destroyed", async () => {
    await client.task("POST", "/nodes/pve1/lxc/9001/clone", {
      newid: 210,
      description: `cmux-execd-auth-token=${TOKEN}`,
    });
    await client.task("POST", "/nodes/pve1/lxc/210/status/start");
    const guest = find(210);
    expect(guest).toMatchObject({ status: "running", tokenInForce: TOKEN });
    expect(guest?.address).toMatch(/^127\./);
    const shown = JSON.stringify(await client.data("GET", "/nodes/pve1/lxc/210/interfaces"));
    expect(shown).toContain(guest?.address);
    expect((await fetch(`http://${guest?.address}:39375/healthz`)).status).toBe(200);
    const refused = await client.ask("DELETE", "/nodes/pve1/lxc/210");
    expect(refused.reason).toBe("unable to destroy CT 210 - container is running");
    await client.task("DELETE", "/nodes/pve1/lxc/210", { force: 1 });
    expect(find(210)).toBeUndefined();
    await expect(fetch(`http://${guest?.address}:39375/healthz`)).rejects.toThrow();
  });

  it("keeps linked clones on the template's node, and lets shared storage cross", async () => {
    const local = await client.ask("POST", "/nodes/pve1/lxc/9001/clone", { newid: 220, target: "pve2" });
    expect(local.reason).toBe("can't clone CT to node 'pve2' (CT uses local storage)");
    pve.addTemplate({ name: "shared", vmid: 9100, storage: "ceph" });
    await client.task("POST", "/nodes/pve1/lxc/9100/clone", { newid: 221, target: "pve2" });
    expect(find(221)).toMatchObject({ node: "pve2" });
    expect(find(221)?.config["rootfs"]).toMatch(/^ceph:base-9100-disk-0\/vm-221-disk-0,/);
    await client.task("DELETE", "/nodes/pve1/lxc/9100");
    expect(pve.tasks().at(-1)?.exitstatus).toBe("base volume 'base-9100-disk-0' is still in use by linked clones");
    expect(find(9100)).toBeDefined();
    // LVM-thin's clones stand for themselves, and nobody counts them.
    pve.addTemplate({ name: "thin", vmid: 9101 });
    await client.task("POST", "/nodes/pve1/lxc/9101/clone", { newid: 222 });
    await client.task("DELETE", "/nodes/pve1/lxc/9101");
    expect([find(9101), find(222)]).toEqual([undefined, expect.anything()]);
  });

  it("refuses a linked clone where the storage can't, and fails a copy onto a full one", async () => {
    pve.addTemplate({ vmid: 9200, storage: "local" });
    const linked = await client.ask("POST", "/nodes/pve1/lxc/9200/clone", { newid: 230 });
    expect(linked.reason).toBe("Linked clone feature for 'local:9200/base-9200-disk-0.raw' is not available");
    expect(find(230)).toBeUndefined();
    await using small = await startPve({
      nodes: [{ name: "pve1", storages: [{ name: "local-lvm", type: "lvmthin", sizeGib: 2 }] }],
      timings: { timeScale: 0.01, apiScale: 0 },
    });
    await using other = new Client(small);
    const upid = await other.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: 300, full: 1 });
    const end = small.tasks().find((task) => task.upid === upid)?.exitstatus;
    expect(end).toMatch(/^clone failed: .*free space in thin pool/);
    expect(small.containers().map(({ vmid, lock }) => [vmid, lock])).toEqual([[9001, undefined]]);
  });

  it("puts a clone into its pool by the end of its task, and takes it out when it is destroyed", async () => {
    await client.data("POST", "/pools", { poolid: "fleet" });
    await client.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: 240, pool: "fleet" });
    const pool = await client.data("GET", "/pools/fleet");
    expect(pool).toMatchObject({ members: [{ vmid: 240, node: "pve1" }] });
    await client.task("DELETE", "/nodes/pve1/lxc/240");
    expect(await client.data("GET", "/pools/fleet")).toMatchObject({ members: [] });
  });

  it("brings files back with a snapshot and copies them with a clone", async () => {
    await client.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: 250 });
    await client.task("POST", "/nodes/pve1/lxc/250/status/start");
    await exec(find(250)?.address, "echo one > file");
    await client.task("POST", "/nodes/pve1/lxc/250/snapshot", { snapname: "s1" });
    await exec(find(250)?.address, "echo two > file");
    await client.task("POST", "/nodes/pve1/lxc/250/clone", { newid: 251, snapname: "s1", full: 1 });
    await client.task("POST", "/nodes/pve1/lxc/250/snapshot/s1/rollback");
    expect(find(250)?.status).toBe("stopped");
    for (const vmid of [250, 251]) {
      await client.task("POST", `/nodes/pve1/lxc/${vmid}/status/start`);
      expect(await exec(find(vmid)?.address, "cat file")).toContain('"data":"one"');
    }
  });

  async function exec(address: string | undefined, command: string): Promise<string> {
    const response = await fetch(`http://${address}:39375/exec`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ command }),
    });
    return response.text();
  }
});

describe("cluster/resources", () => {
  it("lags: a new container is unknown, a reused VMID has its predecessor's name", async () => {
    await using pve = await startPve({ timings: { timeScale: 0, apiScale: 0, resourcesLag: 300 } });
    await using client = new Client(pve);
    const entry = async () => {
      const list = (await client.data("GET", "/cluster/resources", { type: "vm" })) as { vmid: number }[];
      return list.find(({ vmid }) => vmid === 200);
    };
    const settled = async () => {
      const known = expect.objectContaining({ name: expect.any(String) });
      await expect.poll(entry, { timeout: 30_000, interval: 20 }).toEqual(known);
    };
    await client.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: 200, hostname: "first" });
    expect(await entry()).toEqual({
      id: "lxc/200",
      type: "lxc",
      vmid: 200,
      node: "pve1",
      tags: "cmux",
      status: "unknown",
    });
    await settled();
    await client.task("POST", "/nodes/pve1/lxc/200/status/start");
    await expect.poll(entry, { timeout: 30_000, interval: 20 }).toMatchObject({ status: "running" });
    await client.task("DELETE", "/nodes/pve1/lxc/200", { force: 1 });
    await client.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: 200, hostname: "second" });
    expect(await entry()).toMatchObject({ name: "first", status: "running" });
    await expect.poll(entry, { timeout: 30_000, interval: 20 }).toMatchObject({ name: "second", status: "stopped" });
  });
});
