/** Replicas of templates on other nodes: made when asked for, cloned from like their original, gone when nobody needs them. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Template } from "../../../shared/state/templates.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";
import type { WorkerProcess } from "./worker-process.ts";

let bed: Bed;
let worker: WorkerProcess;
beforeAll(async () => {
  bed = await startBed({
    workers: "none",
    pve: {
      nodes: [{ name: "pve1" }, { name: "pve2" }, { name: "pve3", storages: [{ name: "local-lvm", type: "lvmthin" }] }],
      templates: [{ name: "cmux-base", node: "pve1" }],
      timings: { cloneFull: 10_000 },
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
  const made = await handle.result({ timeoutMs: 40_000 });
  expect(made).toMatchObject({ of: 9_001, node: "pve2", storage: "ceph" });
  expect(copies()).toMatchObject([{ vmid: made.vmid, node: "pve2", template: true }]);
  expect(bed.pve.tasks().map(({ type }) => type)).toEqual(["vzclone", "vztemplate"]);
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { node: "pve2" });
  const clone = bed.pve.log().find(({ params }) => params["newid"] === String(vmid));
  expect(clone?.path).toContain(`/lxc/${made.vmid}/clone`);
  expect(clone?.params).toMatchObject({ full: "0" });
  expect(await bed.redis.hget(bed.keys.replicaUses, String(made.vmid))).not.toBeNull();
  await run(bed.fleet, "destroy", { sandboxId });
  expect(await bed.fleet.templates.list()).toMatchObject([{ id: made.replicaId, copyOf: 9_001 }, { vmid: 9_001 }]);
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
  await failure(run(bed.fleet, "replicate", { template: "none", node: "pve2" }), "template_not_found");
  expect(bed.pve.tasks().length).toBe(before);
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
