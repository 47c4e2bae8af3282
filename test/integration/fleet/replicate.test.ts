/** Replicas of templates on other nodes: made when asked for, cloned from like their original, gone when nobody needs them. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Template } from "../../../shared/state/templates.ts";
import { Client } from "../../pve/client.ts";
import type { StorageSpec } from "../../pve/options.ts";
import { command } from "../command.ts";
import { type Bed, containerOf, failure, firstFailure, provisionOne, run, startBed, until } from "./harness.ts";
import type { WorkerProcess } from "./worker-process.ts";

const local: StorageSpec = { name: "local-lvm", type: "lvmthin" };
const ceph: StorageSpec = { name: "ceph", type: "rbd", shared: true };
/** For archives alone, one of each guest. */
const nas: StorageSpec = { name: "nas", type: "dir", shared: true, content: "backup", keepBackups: 1 };

let bed: Bed;
let worker: WorkerProcess;
beforeAll(async () => {
  bed = await startBed({
    rights: "least",
    workers: "none",
    pve: {
      nodes: [
        { name: "pve1", storages: [local, ceph, nas] },
        { name: "pve2", storages: [local, ceph] },
        { name: "pve3", storages: [local] },
        { name: "pve4", storages: [local, nas] },
      ],
      templates: [
        { name: "cmux-base", node: "pve1" },
        { name: "with-data", node: "pve1", config: { mp0: "local-lvm:base-9002-disk-1,mp=/data,size=1G" } },
      ],
      // An archive takes over a second: two of one second would have one name.
      timings: { cloneFull: 10_000, backup: 15_000, restore: 8_000, lockMinute: 200 },
    },
  });
  worker = await bed.startProcess();
});
afterAll(() => bed.close());

const copies = () => bed.pve.containers().filter(({ config }) => config["description"]?.includes("copyOf"));

test("a worker that is killed in its clone leaves one replica; provisions on its node are cloned from it", async () => {
  const handle = await bed.fleet.replicate({ template: "cmux-base", node: "pve2" });
  await until(() => bed.pve.tasks().some(({ type, endedAt }) => type === "vzclone" && !endedAt), "the clone");
  await worker.end("SIGKILL");
  worker = await bed.startProcess();
  const made = await handle.result({ timeoutMs: 60_000 });
  expect(made).toMatchObject({ of: 9_001, node: "pve2", storage: "ceph" });
  expect(copies()).toMatchObject([{ vmid: made.vmid, node: "pve2", template: true }]);
  expect(bed.pve.tasks().map(({ type }) => type)).toEqual(["vzclone", "vztemplate"]);
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { node: "pve2" });
  const clone = bed.pve.log().find(({ params }) => params["newid"] === String(vmid));
  expect(clone?.path).toContain(`/lxc/${made.vmid}/clone`);
  expect(clone?.params).toMatchObject({ full: "0" });
  expect(await bed.redis.hget(bed.keys.replicaUses, String(made.vmid))).not.toBeNull();
  await run(bed.fleet, "destroy", { sandboxId });
  expect(await bed.fleet.templates.list()).toMatchObject([
    { id: made.replicaId, copyOf: 9_001 },
    { vmid: 9_001 },
    { vmid: 9_002 },
  ]);
  const rm = await command(bed.env, "template", "rm", "cmux-base");
  expect(rm.err).toContain(
    `cmux-base could be ${made.vmid} on pve2 (a replica of 9001) or 9001 on pve1 (not the fleet's)`,
  );
});

test("refused before anything is touched: where there is one, and where no storage is shared", async () => {
  const before = bed.pve.tasks().length;
  const tries = [
    ["pve2", "template_exists"],
    ["pve1", "template_exists"],
    ["pve3", "storage_not_found"],
  ] as const;
  for (const [node, code] of tries) await failure(run(bed.fleet, "replicate", { template: "cmux-base", node }), code);
  await failure(bed.fleet.replicate({ template: "cmux-base", node: "pve9" }), "invalid_input");
  const data = await failure(run(bed.fleet, "replicate", { template: "with-data", node: "pve4" }), "unsupported");
  expect(data.text).toContain("give them backup=1: mp0 of 9002");
  await failure(run(bed.fleet, "replicate", { template: "none", node: "pve2" }), "template_not_found");
  expect(bed.pve.tasks().length).toBe(before);
});

test("where only archives can be shared, one is saved, restored and deleted; nothing of it is left after a crash or a cancel", async () => {
  await using human = new Client(bed.pve);
  await human.data("POST", "/nodes/pve1/vzdump", { vmid: 9_001, storage: "nas" });
  await until(() => bed.pve.tasks().some(({ type, endedAt }) => type === "vzdump" && endedAt), "a human's archive");
  const kept = () => human.data("GET", "/nodes/pve1/storage/nas/content", { content: "backup" });
  const before = await kept();
  expect(before).toHaveLength(1);
  const archives = () => bed.pve.tasks().filter(({ type }) => type === "imgdel").length;
  const begun = bed.pve.tasks().length;
  const saving = () => bed.pve.tasks().some(({ type, endedAt }) => type === "vzdump" && !endedAt);
  const canceled = await bed.fleet.replicate({ template: "cmux-base", node: "pve4" });
  await until(() => bed.pve.tasks().some(({ type, endedAt }) => type === "vzrestore" && !endedAt), "the restore");
  await canceled.cancel();
  await failure(canceled.result({ timeoutMs: 60_000 }), "canceled");
  expect(copies().filter(({ node }) => node === "pve4")).toEqual([]);
  expect(archives()).toBe(1);

  const handle = await bed.fleet.replicate({ template: "cmux-base", node: "pve4" });
  await until(saving, "the save");
  await worker.end("SIGKILL");
  worker = await bed.startProcess();
  const made = await handle.result({ timeoutMs: 60_000 });
  expect(made).toMatchObject({ of: 9_001, node: "pve4", storage: "local-lvm" });
  expect(copies().filter(({ node }) => node === "pve4")).toMatchObject([{ vmid: made.vmid, template: true }]);
  const types = bed.pve
    .tasks()
    .slice(begun + 2)
    .map(({ type }) => type);
  expect(types.filter((type) => /^vzdump|^vzrestore$/.test(type)).slice(-2)).toEqual(["vzdump", "vzrestore"]);
  expect(archives()).toBe(2);
  expect(await kept()).toEqual(before);
  expect(containerOf(bed, 9_001)?.lock).toBeUndefined();
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { node: "pve4" });
  expect(bed.pve.log().find(({ params }) => params["newid"] === String(vmid))?.path).toContain(`/${made.vmid}/`);
  await run(bed.fleet, "destroy", { sandboxId });
  await run(bed.fleet, "destroy", { sandboxId: made.replicaId });
});

test("behind another backup of its node it waits its turn without keeping anybody from the template", async () => {
  await using human = new Client(bed.pve);
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { node: "pve1" });
  const night = bed.pve.faults.task({ type: "vzdump", vmid, hold: true });
  await human.data("POST", "/nodes/pve1/vzdump", { vmid, storage: "nas" });
  const handle = await bed.fleet.replicate({ template: "cmux-base", node: "pve4" });
  expect(await firstFailure(handle)).toBe("source_locked");
  await provisionOne(bed.fleet, { node: "pve1" }).then((one) =>
    run(bed.fleet, "destroy", { sandboxId: one.sandboxId }),
  );
  night.release();
  const { replicaId } = await handle.result({ timeoutMs: 60_000 });
  await run(bed.fleet, "destroy", { sandboxId: replicaId });
  await run(bed.fleet, "destroy", { sandboxId });
});

test("one from which nothing was cloned for long goes by itself", async () => {
  const [text = "{}"] = await bed.redis.hvals(bed.keys.replicas);
  const copy = Template.parse(JSON.parse(text));
  await bed.redis.hset(bed.keys.replicas, copy.id, JSON.stringify({ ...copy, createdAt: 0 }));
  await bed.redis.del(bed.keys.replicaUses);
  await until(() => copies().length === 0, "its end");
  await until(async () => (await bed.redis.hlen(bed.keys.replicas)) === 0, "its record's end");
  expect(containerOf(bed, 9_001)).toMatchObject({ template: true });
});

test("a team's template is replicated for that team alone", async () => {
  const red = bed.client({ team: "red" });
  const { sandboxId } = await provisionOne(red);
  const { templateId } = await run(red, "template", { sandboxId, name: "own" });
  const blue = bed.client({ team: "blue" });
  await failure(run(blue, "replicate", { template: "own", node: "pve2" }), "template_not_found");
  await run(red, "replicate", { template: "own", node: "pve2" });
  const copy = await provisionOne(red, { template: templateId, node: "pve2" });
  expect(copy.node).toBe("pve2");
  await failure(provisionOne(blue, { template: "own" }), "template_not_found");
});

test("where its nodes take nothing, a template gets a replica by itself on one that has room", async () => {
  await bed.fleet.nodes.cordon("pve1", { by: "the test" });
  const made = await provisionOne(bed.fleet, { memoryMib: 640 });
  expect(made.node).toBe("pve2");
  expect(copies().filter(({ node }) => node === "pve2")).toHaveLength(2);
  await bed.fleet.nodes.uncordon("pve1");
});
