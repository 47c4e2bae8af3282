/** Pools: sandboxes that are made before they are asked for, and given out whole and once. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { newOperationId, newSandboxId } from "../../../shared/ids.ts";
import { markOwner } from "../../../workers/pool/owner-mark.ts";
import { loadMembers } from "../../../workers/pool/probe.ts";
import { type Bed, containerOf, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;

beforeAll(async () => {
  bed = await startBed();
});
afterAll(() => bed.close());

const TEMPLATE = "cmux-base";
const ready = async (count: number) =>
  until(async () => (await bed.redis.zcount(bed.keys.poolReady(TEMPLATE), "(0", "+inf")) === count, `${count} ready`);

test("a pool is filled, and a provision gets a member of it, with all that it asked for", async () => {
  await bed.fleet.pools.set(TEMPLATE, { min: 2, max: 3 });
  await ready(2);
  expect(await bed.fleet.sandboxes.list()).toEqual([]);
  const made = await provisionOne(bed.fleet, {
    metadata: { app: "web" },
    env: { WORD: "hello" },
    services: [{ name: "web", port: 8_000 }],
    ttlSeconds: 3_600,
  });
  expect(made).toMatchObject({ warm: true, services: [{ name: "web" }] });
  expect(made.timings).not.toHaveProperty("clone");
  const record = await bed.fleet.sandboxes.get(made.sandboxId);
  expect(record).toMatchObject({ state: "running", team: "default", vmid: made.vmid, metadata: { app: "web" } });
  expect(record.expiresAt).toBeGreaterThan(Date.now() + 3_000_000);
  expect(containerOf(bed, made.vmid)?.status).toBe("running");
  const { stdout } = await run(bed.fleet, "exec", { sandboxId: made.sandboxId, command: "echo $WORD" });
  expect(stdout).toBe("hello\n");
  await run(bed.fleet, "destroy", { sandboxId: made.sandboxId });
  expect(containerOf(bed, made.vmid)).toBeUndefined();
  await ready(2);
  expect(await bed.fleet.pools.list()).toMatchObject([{ template: TEMPLATE, target: 2, ready: 2, asked: 1, hits: 1 }]);
});

test("a member that is somebody's by the name inside it is given to nobody else, whatever Redis says", async () => {
  const context = bed.workers?.context;
  if (!context) throw new Error("no workers");
  const members = await loadMembers(context);
  expect(members).toHaveLength(2);
  for (const { id, address = "" } of members) {
    const { execToken: token = "" } = await context.secrets.get(id);
    const owner = { sandbox: newSandboxId(), operation: newOperationId() };
    const inside = { address, token, signal: AbortSignal.timeout(10_000) };
    expect(await markOwner(context, owner, inside)).toEqual(owner);
    expect(await markOwner(context, { sandbox: newSandboxId(), operation: newOperationId() }, inside)).toEqual(owner);
  }
  const made = await provisionOne(bed.fleet);
  expect(made.warm).toBe(false);
  const vmids = members.map(({ vmid }) => vmid);
  expect(vmids).not.toContain(made.vmid);
  await run(bed.fleet, "destroy", { sandboxId: made.sandboxId });
});

test("a pool that is removed takes its members along", async () => {
  expect(await bed.fleet.pools.remove(TEMPLATE)).toBe(true);
  await until(
    () => bed.pve.containers().every(({ config }) => !config["description"]?.includes("fleet-pool")),
    "no members",
  );
});
