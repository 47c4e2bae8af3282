/** How long sandboxes live: what workers allow, extensions, warnings, and ends that come in time. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, failure, provisionOne, run, startBed } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1 },
    env: { FLEET_TTL_DEFAULT_SECONDS: "3600", FLEET_TTL_MAX_SECONDS: "7200" },
  });
});
afterAll(() => bed.close());

const secondsLeft = async (id: string) => {
  const { expiresAt } = await bed.fleet.sandboxes.get(id);
  return expiresAt === undefined ? null : Math.round((expiresAt - Date.now()) / 1_000);
};
/** Rounded, and a slow machine. */
const about = (seconds: number) => ({
  asymmetricMatch: (left: unknown) => typeof left === "number" && left <= seconds && left > seconds - 20,
});

test("a provision that names no TTL has the default; more than the maximum is refused before anything is accepted", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  expect(await secondsLeft(sandboxId)).toEqual(about(3_600));
  const long = await failure(bed.fleet.provision({ template: "cmux-base", ttlSeconds: 7_201 }), "invalid_input");
  expect(long.text).toMatch(/^ttlSeconds: 7201 is too long; ask for at most 7200, the workers' FLEET_TTL_MAX_SECONDS/);
  expect(long.facts).toMatchObject({ fields: ["ttlSeconds"], maxSeconds: 7_200 });
  await failure(bed.fleet.update({ sandboxId, ttlSeconds: 7_201 }), "invalid_input");
  await failure(bed.fleet.update({ sandboxId, ttlSeconds: 7_201, extend: true }), "invalid_input");
  expect((await failure(bed.fleet.update({ sandboxId, ttlSeconds: null }), "invalid_input")).text).toMatch(
    /^ttlSeconds: null/,
  );
  const extension = await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 7_201 }), "invalid_input");
  expect(extension).toMatchObject({
    text: expect.stringMatching(/^seconds: 7201 is too long/),
    facts: { fields: ["seconds"] },
  });
  expect(await bed.redis.zcard(bed.keys.open)).toBe(0);
  expect(await bed.redis.zcard(bed.keys.sandboxes)).toBe(1);
  const batch = await bed.fleet.batch([{ kind: "provision", input: { template: "cmux-base", ttlSeconds: 8_000 } }]);
  expect((await batch.result({ timeoutMs: 20_000 })).counts).toMatchObject({ failedByCode: { invalid_input: 1 } });
  await run(bed.fleet, "update", { sandboxId, ttlSeconds: 7_200 });
  expect(await secondsLeft(sandboxId)).toEqual(about(7_200));
});

test("an extension moves an end only later, at once, and not once the end has begun", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { ttlSeconds: 100 });
  expect(await bed.fleet.sandboxes.extend(vmid, { seconds: 50 })).toEqual({
    expiresAt: (await bed.fleet.sandboxes.get(sandboxId)).expiresAt,
  });
  const events = bed.fleet.events({ sandbox: sandboxId, types: ["sandbox.updated"] });
  await bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 });
  expect(await secondsLeft(sandboxId)).toEqual(about(500));
  expect((await events.next()).value).toMatchObject({ data: { fields: ["ttl"] } });
  expect((await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 5 }), "invalid_input")).text).toMatch(
    /^seconds: /,
  );
  await failure(bed.client({ team: "others" }).sandboxes.extend(sandboxId, { seconds: 500 }), "sandbox_not_found");
  // Its destroy has to wait for a slot.
  bed.pve.faults.lock(vmid, "backup");
  const destroy = await bed.fleet.destroy({ sandboxId });
  const late = await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 }), "sandbox_gone");
  expect(late.text).toContain("is being destroyed");
  bed.pve.faults.lock(vmid, null);
  await destroy.result({ timeoutMs: 20_000 });
  expect((await failure(bed.fleet.sandboxes.extend(sandboxId, { seconds: 500 }), "sandbox_gone")).text).toContain(
    "has ended",
  );
});
