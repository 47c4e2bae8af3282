/** Pools: sandboxes that are made before they are asked for, and given out whole and once. */
import { afterAll, beforeAll, expect, test } from "vitest";
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
  expect(await bed.fleet.pools.remove(TEMPLATE)).toBe(true);
  await until(
    () => bed.pve.containers().every(({ config }) => !config["description"]?.includes("fleet-pool")),
    "no members",
  );
});
