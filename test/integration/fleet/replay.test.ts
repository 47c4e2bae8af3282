/** Jobs that come again after their operation has ended, as BullMQ, a board or a restored queue may bring them: nothing changes. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Handle, JobName } from "../../../producers/index.ts";
import { CONTROL, createQueues, type Queues } from "../../../shared/queues.ts";
import { createOperationStore } from "../../../shared/state/operations.ts";
import { contentOf } from "./dump.ts";
import { type Bed, failure, provisionOne, startBed, until } from "./harness.ts";

let bed: Bed;
let queues: Queues;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { PVE_PUBLIC_DOMAIN: "sandbox.test", FLEET_ADOPT_PREFIXES: "human-" },
  });
  queues = createQueues(bed.redis, bed.keys.prefix);
});
afterAll(async () => {
  await queues.close();
  await bed.close();
});

/** Sends one operation of a kind, with what must be there before it. */
const KINDS: { [N in Exclude<JobName, "shell" | "replicate">]: () => Promise<Handle<JobName>> } = {
  provision: () =>
    bed.fleet.provision({ template: "cmux-base", ttlSeconds: 3_600, services: [{ name: "web", port: 80 }] }),
  exec: async () => bed.fleet.exec({ ...(await one()), command: "echo ran >> ran.log; wc -l < ran.log" }),
  upload: async () => bed.fleet.upload({ ...(await one()), path: "/workspace/once" }, "once"),
  download: async () => bed.fleet.download({ ...(await one()), path: "/bin/sh" }),
  expose: async () => bed.fleet.expose({ ...(await one()), name: "web", port: 80 }),
  hide: async () => {
    const sandbox = await one();
    await (await bed.fleet.expose({ ...sandbox, name: "web", port: 80 })).result();
    return bed.fleet.hide({ ...sandbox, name: "web" });
  },
  link: async () => {
    const sandbox = await one();
    await (await bed.fleet.expose({ ...sandbox, name: "web", port: 80 })).result();
    return bed.fleet.link({ ...sandbox, name: "web" });
  },
  snapshot: async () => bed.fleet.snapshot({ ...(await one()), name: "once" }),
  delete_snapshot: async () => {
    const sandbox = await one();
    const { snapshotId } = await (await bed.fleet.snapshot(sandbox)).result();
    return bed.fleet.delete_snapshot({ ...sandbox, snapshotId });
  },
  restore: async () => {
    const sandbox = await one();
    const { snapshotId } = await (await bed.fleet.snapshot(sandbox)).result();
    return bed.fleet.restore({ ...sandbox, snapshotId });
  },
  template: async () => bed.fleet.template({ ...(await one()), name: "once" }),
  build: async () => bed.fleet.build({ name: "built", from: { template: "cmux-base" } }),
  adopt: async () => {
    bed.pve.faults.occupy(20_900);
    return bed.fleet.adopt({ node: "pve1", vmid: 20_900 });
  },
  migrate: async () => bed.fleet.migrate({ ...(await one()), target: "pve1" }),
  power: async () => bed.fleet.power({ ...(await one()), action: "reboot" }),
  configure: async () => bed.fleet.configure({ ...(await one()), memoryMib: 1_024, diskGib: 6 }),
  update: async () => bed.fleet.update({ ...(await one()), metadata: { a: "1" }, ttlSeconds: 600 }),
  destroy: async () => bed.fleet.destroy(await one()),
};

async function one() {
  const { sandboxId } = await provisionOne(bed.fleet);
  return { sandboxId };
}

/** Everything that the fleet keeps, but its queues and what the clockwork renews. */
async function recordsNow(): Promise<Record<string, string>> {
  const { redis, keys } = bed;
  const own = [
    "op:",
    "sbx:",
    "snap",
    "templates:",
    "secret:",
    "vmids",
    "reserved:",
    "addresses",
    "expiries",
    "events",
    "open",
    "slot",
    "held:",
  ];
  const names = (await redis.keys(`${keys.prefix}:*`)).filter((key) =>
    own.some((name) => key.startsWith(`${keys.prefix}:${name}`)),
  );
  const contents = await Promise.all(names.sort().map(async (key) => [key, await contentOf(redis, key)] as const));
  return Object.fromEntries(contents);
}

/** What PVE was asked about containers, which there are, and what commands have left in them. */
const truthNow = () => ({
  asked: bed.pve
    .log()
    .filter(({ path }) => /\/lxc\/[2-9]\d{4}|\/clone$/.test(path) && !ofInventory(path))
    .map(({ method, path }) => `${method} ${path}`),
  tasks: bed.pve.tasks().length,
  containers: bed.pve.containers().map(({ root, ...container }) => {
    const log = join(root, "ran.log");
    return { ...container, ran: existsSync(log) ? readFileSync(log, "utf8") : "" };
  }),
});

/** Templates' configs are read again each minute; some of them were made here. */
function ofInventory(path: string): boolean {
  const vmid = Number(/\/lxc\/(\d+)\/config$/.exec(path)?.[1]);
  return bed.pve.containers().some((one) => one.vmid === vmid && one.template);
}

/** Puts a job of an ended operation into its queue and waits until it is done. */
async function replay(handle: Handle<JobName>, jobId: string, queue: string): Promise<unknown> {
  const { kind, id: operation, sandboxId: sandbox } = handle;
  await (await queues.get(queue).getJob(jobId))?.remove();
  const { team } = await bed.fleet.sandboxes.get(sandbox).catch(() => ({ team: "default" }));
  await queues.add(queue, { id: jobId, kind, priority: 0, data: { operation, sandbox, team: team as never } });
  const job = await until(async () => {
    const found = await queues.get(queue).getJob(jobId);
    return found?.finishedOn === undefined ? null : found;
  }, `the job ${jobId}`);
  expect(await job.getState()).toBe("completed");
  return job.returnvalue;
}

async function expectNothingChanges(handle: Handle<JobName>, outcome: string): Promise<void> {
  const store = createOperationStore(bed.redis, bed.keys, { retentionSec: 60 });
  const record = await store.load(handle.id);
  if (!record) throw new Error("no record");
  const jobs = [
    { id: record.job, queue: record.queue },
    { id: `${handle.id}.${record.seq + 1}`, queue: record.queue },
    { id: handle.id, queue: "place" },
    { id: handle.id, queue: "exec-pve1" },
  ];
  await until(async () => (await queues.get(record.queue).getActiveCount()) === 0, "BullMQ's own end of the job");
  const { restamp, restamping } = bed.keys;
  await until(async () => (await bed.redis.exists(restamp, restamping)) === 0, "the stamp that follows");
  // The clockwork reads and writes by itself: a slow list of PVE's still shows what has gone, and reconcile looks at it.
  const control = queues.get(CONTROL);
  await control.pause();
  try {
    await until(async () => (await control.getActiveCount()) === 0, "the clockwork's end");
    const before = { records: await recordsNow(), truth: truthNow() };
    for (const { id, queue } of jobs) expect(await replay(handle, id, queue), `${id} in ${queue}`).toEqual({ outcome });
    expect({ records: await recordsNow(), truth: truthNow() }).toEqual(before);
  } finally {
    await control.resume();
  }
}

test.each(Object.entries(KINDS))("the job of a finished %s, again: nothing changes", async (_, send) => {
  const handle = await send();
  const result = await handle.result({ timeoutMs: 60_000 });
  await expectNothingChanges(handle, "succeeded");
  expect(await handle.result()).toEqual(result);
});

test("the job of a provision that failed and was undone, again: nothing changes", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base", setup: ["false"] });
  await failure(handle.result({ timeoutMs: 60_000 }), "setup_failed");
  await expectNothingChanges(handle, "failed");
});

test("the job of a canceled provision, again: nothing changes", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base", setup: ["sleep 60"] });
  await until(async () => (await handle.status()).step?.startsWith("setup"), "the setup");
  await handle.cancel();
  await failure(handle.result({ timeoutMs: 60_000 }), "canceled");
  await expectNothingChanges(handle, "canceled");
});
