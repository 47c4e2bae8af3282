/** Redis loses all it has while five hundred sandboxes run: all of them come back from PVE, as they were. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type SandboxId, SnapshotId } from "../../shared/ids.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { type Gate, startGate } from "../../workers/gate/gate.ts";
import { type Bed, run, startBed, until } from "../integration/fleet/harness.ts";
import { askGate, startEcho } from "../integration/gate/rig.ts";

const COUNT = 500;
const NODES = 10;
const DOMAIN = "sandbox.test";
let bed: Bed;
let gate: Gate | undefined;
beforeAll(async () => {
  bed = await startBed({
    workers: "none",
    redis: { engine: "process" },
    pve: { nodes: NODES, timings: { timeScale: 0.01 } },
    env: {
      PVE_PUBLIC_DOMAIN: DOMAIN,
      GATE_PORT: "0",
      GATE_PROXY_SECRET: "p".repeat(32),
      FLEET_NODE_SLOTS: "16",
      FLEET_STRAY_GRACE_SECONDS: "0",
      FLEET_ORPHAN_GRACE_HOURS: "0",
    },
  });
});
afterAll(async () => {
  await gate?.[Symbol.asyncDispose]();
  await bed?.close();
});

const recordOf = async (id: string) => {
  const { stateAt: _at, runningAt: _since, createdAt: _made, ...record } = await bed.fleet.sandboxes.get(id);
  return record;
};

test("all five hundred are back after FLUSHALL: commands and URLs work", { timeout: 280_000 }, async () => {
  const worker = await bed.startProcess();
  const batch = await bed.fleet.batch({
    count: COUNT,
    template: "cmux-base",
    services: [{ name: "web", port: 8_000, auth: "none" }],
    metadata: { app: "load", text: "\u00fc\u4e16" },
    ttlSeconds: 36_000,
    ttlAction: "stop",
    idleSeconds: 86_400,
  });
  const ids: string[] = [];
  for await (const item of batch.results()) ids.push(item.ok ? item.sandboxId : expect.fail(item.error.code));
  const [first = "", second = "", third = ""] = ids;
  const { snapshotId } = await run(bed.fleet, "snapshot", { sandboxId: first as SandboxId });
  await run(bed.fleet, "power", { sandboxId: second as SandboxId, action: "stop" });
  await run(bed.fleet, "hide", { sandboxId: third as SandboxId, name: "web" });
  const template = await run(bed.fleet, "template", { sandboxId: third as SandboxId, name: "my-app", version: "1" });
  const followed = async () => (await bed.redis.exists(bed.keys.restamp, bed.keys.restamping)) === 0;
  await until(followed, "every stamp", 60_000);
  const before = new Map(await Promise.all(ids.map(async (id) => [id, await recordOf(id)] as const)));
  const leases = await bed.redis.hgetall(bed.keys.vmids);
  const containers = bed.pve.containers().length;

  await bed.redis.flushall();
  // The clockwork finds five hundred containers that nobody owns, and leaves them alone.
  const strays = createKeys(bed.keys.prefix).strays;
  await until(async () => (await bed.redis.hlen(strays)) >= COUNT, "the quarantine", 30_000);
  await until(
    async () => (await bed.redis.hvals(strays)).filter((json) => json.includes('"keep"')).length >= COUNT,
    "the word that they are kept",
    60_000,
  );
  expect(bed.pve.containers()).toHaveLength(containers);

  const dry = await bed.fleet.reconcile({ rebuild: true, dryRun: true });
  expect(dry.filter(({ done }) => done === "to take in")).toHaveLength(COUNT + 1);
  const begun = performance.now();
  // Its worker dies in the middle of it, and another goes on.
  let next: Promise<unknown> | undefined;
  const onProgress = (done: number | undefined) => {
    if (done !== undefined && done > 0) next ??= worker.end("SIGKILL").then(() => bed.startProcess());
  };
  await bed.fleet.reconcile({ rebuild: true, onProgress });
  expect(await next).toBeDefined();
  const seconds = ((performance.now() - begun) / 1_000).toFixed(1);
  const after = new Map(await Promise.all(ids.map(async (id) => [id, await recordOf(id)] as const)));
  expect(after).toEqual(before);
  expect(await bed.redis.hgetall(bed.keys.vmids)).toEqual(leases);
  expect(SnapshotId.parse((await run(bed.fleet, "restore", { sandboxId: first, snapshotId })).snapshotId)).toBe(
    snapshotId,
  );

  // Commands, in each that runs, with the token that it was made with.
  const running = ids.filter((id) => after.get(id)?.state === "running");
  const codes = await Promise.all(
    running.map(async (id) => (await run(bed.fleet, "exec", { sandboxId: id as SandboxId, command: "true" })).exitCode),
  );
  expect(new Set(codes)).toEqual(new Set([0]));
  // URLs, through the gate.
  const { context } = await bed.startWorkers({ FLEET_ROLES: "gate" });
  gate = await startGate(context);
  const { address = "", services } = after.get(running[5] ?? "") ?? {};
  await using _guest = await startEcho(address, 8_000);
  expect((await askGate(gate, new URL(services?.[0]?.url ?? "").host)).status).toBe(200);
  await run(bed.fleet, "destroy", {
    sandboxId: (await bed.fleet.provision({ template: template.templateId }).then((one) => one.result())).sandboxId,
  });
  console.log(`${COUNT} sandboxes are back after ${seconds} s`);
});
