/** Limits over several worker processes, asserted from the stand-in's own log. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterEach, expect, test } from "vitest";
import { createQueues, nodeQueue } from "../../../shared/queues.ts";
import type { PveOptions } from "../../pve/index.ts";
import { type Bed, provisionOne, run, startBed, until } from "./harness.ts";
import { groupBy, isHeavy, mostAtOnce, subjectOf } from "./overlap.ts";

let bed: Bed | undefined;
afterEach(async () => {
  await bed?.close();
  bed = undefined;
});

const PRODUCER = fileURLToPath(new URL("producer-process.ts", import.meta.url));
const exec = promisify(execFile);

/** Several worker processes and nothing here. */
async function startFleet(pve: PveOptions, env: Record<string, string> = {}, processes = 2): Promise<Bed> {
  bed = await startBed({ pve, env, workers: "none" });
  const here = bed;
  await Promise.all(Array.from({ length: processes }, () => here.startProcess()));
  return here;
}

/** PVE refused nothing on the way: not for a lock, nor for a VMID that was taken. */
function refusals({ pve }: Bed): string[] {
  const requests = pve.log().filter(({ status }) => status >= 400);
  const tasks = pve.tasks().filter(({ exitstatus = "OK" }) => exitstatus !== "OK");
  return [
    ...requests.map(({ path, reason }) => `${path}: ${reason}`),
    ...tasks.map(({ exitstatus = "" }) => exitstatus),
  ];
}

/** What holds then are the slot leases alone. */
async function removeGlobalConcurrency({ redis, keys, pve }: Bed): Promise<void> {
  const queues = createQueues(redis, keys.prefix);
  for (const node of pve.nodes) await queues.get(nodeQueue(node)).removeGlobalConcurrency();
  await queues.close();
}

/** What is asked for meets in so many tasks at once, which go on together: a limit that nobody reaches says nothing. */
async function meeting<T>({ pve }: Bed, type: string, count: number, work: () => Promise<T>[]): Promise<T[]> {
  const held = pve.faults.task({ type, hold: true, times: count });
  const all = Promise.all(work());
  await until(() => held.hits === count, `${count} times ${type}`);
  held.release();
  return all;
}

const clones = ({ pve }: Bed) => pve.tasks().filter(({ type }) => type === "vzclone");

test.each([
  ["as it is", async () => {}],
  ["without BullMQ's own limit, which anybody can delete", removeGlobalConcurrency],
])("two processes, four slots: never more than four heavy operations on a node at once, %s", async (_, weaken) => {
  const here = await startFleet({ nodes: 2 }, { FLEET_NODE_SLOTS: "4" });
  const sandboxes = await Promise.all(Array.from({ length: 24 }, () => provisionOne(here.fleet)));
  await weaken(here);
  await meeting(here, "vzreboot", 8, () =>
    sandboxes.map(({ sandboxId }) => run(here.fleet, "power", { sandboxId, action: "reboot" })),
  );
  await Promise.all(sandboxes.map(({ sandboxId }) => run(here.fleet, "destroy", { sandboxId })));
  for (const node of here.pve.nodes) {
    const heavy = here.pve.tasks().filter((task) => task.node === node && isHeavy(task));
    expect(mostAtOnce(heavy), node).toBe(4);
  }
  expect(here.pve.containers().filter(({ template }) => !template)).toEqual([]);
});

test("one clone at a time per template, and nobody hears of a lock", async () => {
  const here = await startFleet({ nodes: 1 }, { FLEET_NODE_SLOTS: "8" });
  await Promise.all(Array.from({ length: 16 }, () => provisionOne(here.fleet)));
  expect(clones(here)).toHaveLength(16);
  expect(mostAtOnce(clones(here))).toBe(1);
  expect(refusals(here)).toEqual([]);
});

test("with two replicas on the node, two at a time", async () => {
  const here = await startFleet({ nodes: 1, templates: [{ vmid: 9_001 }, { vmid: 9_002 }] }, { FLEET_NODE_SLOTS: "8" });
  await meeting(here, "vzclone", 2, () => Array.from({ length: 16 }, () => provisionOne(here.fleet)));
  expect(mostAtOnce(clones(here))).toBe(2);
  for (const [source, own] of groupBy(clones(here), ({ id }) => id)) expect(mostAtOnce(own), source).toBe(1);
  expect([...groupBy(clones(here), ({ id }) => id).values()].length).toBe(2);
  expect(refusals(here)).toEqual([]);
});

test("60 provisions by three producers on three nodes: 60 containers, no VMID asked for twice", async () => {
  const here = await startFleet({ nodes: 3 });
  const produce = async () => {
    const env = { PATH: process.env["PATH"], ...here.env };
    const { stdout } = await exec(process.execPath, [PRODUCER, "provision", "20"], { env, maxBuffer: 10_000_000 });
    return JSON.parse(stdout) as { results: { vmid: number; sandboxId: string; node: string; address: string }[] };
  };
  const results = (await Promise.all([produce(), produce(), produce()])).flatMap((one) => one.results);
  expect(results).toHaveLength(60);
  for (const key of ["vmid", "sandboxId", "address"] as const) {
    expect(new Set(results.map((one) => one[key])).size, key).toBe(60);
  }
  const made = here.pve.containers().filter(({ template }) => !template);
  expect(made.map(({ vmid, node }) => `${node}/${vmid}`).sort()).toEqual(
    results.map(({ vmid, node }) => `${node}/${vmid}`).sort(),
  );
  expect(refusals(here)).toEqual([]);
  // Spread evenly over nodes that are alike.
  for (const [node, own] of groupBy(clones(here), (task) => task.node)) {
    expect(own.length, node).toBeGreaterThanOrEqual(15);
    expect(
      mostAtOnce(here.pve.tasks().filter((task) => task.node === node && isHeavy(task))),
      node,
    ).toBeLessThanOrEqual(4);
  }
});

test("two full clones at a time on a shared storage", async () => {
  const here = await startFleet(
    {
      nodes: 2,
      templates: [1, 2, 3, 4].map((index) => ({ node: `pve${1 + (index % 2)}`, storage: "ceph", vmid: 9_000 + index })),
    },
    { FLEET_STORAGE_SLOTS: "2", FLEET_NODE_SLOTS: "8" },
  );
  await meeting(here, "vzclone", 2, () =>
    Array.from({ length: 10 }, () => provisionOne(here.fleet, { clone: "full" })),
  );
  expect(mostAtOnce(clones(here))).toBe(2);
  expect(refusals(here)).toEqual([]);
});

test("subjects of changes never overlap in all of this", async () => {
  const here = await startFleet({ nodes: 2 });
  const sandboxes = await Promise.all(Array.from({ length: 6 }, () => provisionOne(here.fleet)));
  await Promise.all(
    sandboxes.flatMap(({ sandboxId }) => [
      run(here.fleet, "snapshot", { sandboxId, name: "one" }),
      run(here.fleet, "configure", { sandboxId, diskGib: 6 }),
      run(here.fleet, "power", { sandboxId, action: "reboot" }),
      run(here.fleet, "snapshot", { sandboxId, name: "two" }),
      run(here.fleet, "power", { sandboxId, action: "shutdown" }),
    ]),
  );
  for (const [vmid, own] of groupBy(here.pve.tasks(), subjectOf)) {
    expect(mostAtOnce(own), vmid).toBe(1);
    if (Number(vmid) < 20_000) continue;
    const order = own.sort((a, b) => a.startedAt - b.startedAt).map(({ type }) => type);
    // As they were sent.
    expect(order, vmid).toEqual(["vzclone", "vzstart", "vzsnapshot", "resize", "vzreboot", "vzsnapshot", "vzshutdown"]);
  }
});
