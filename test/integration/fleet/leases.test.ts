/** VMIDs and addresses that are leased: each to one sandbox at a time, given back at its end. */
import { afterEach, expect, test } from "vitest";
import { type Bed, containerOf, failure, firstFailure, provisionOne, run, startBed, useUpAttempts } from "./harness.ts";

let bed: Bed | undefined;
afterEach(async () => {
  await bed?.close();
  bed = undefined;
});

async function startFleet(env: Record<string, string>): Promise<Bed> {
  bed = await startBed({ pve: { nodes: 2 }, env });
  return bed;
}

test("addresses come from the range, and one that went back is given out again", async () => {
  const here = await startFleet({ PVE_IP_RANGE: "127.77.0.1-127.77.0.2/8", PVE_GATEWAY: "127.77.0.254" });
  const [one, two] = await Promise.all([
    provisionOne(here.fleet),
    provisionOne(here.fleet, { network: { ip: "lease" } }),
  ]);
  expect([one.address, two.address].sort()).toEqual(["127.77.0.1", "127.77.0.2"]);
  expect(containerOf(here, one.vmid)?.config["net0"]).toMatch(`ip=${one.address}/8`);
  expect(containerOf(here, one.vmid)?.config["net0"]).toMatch("gw=127.77.0.254");
  // Who asks for another way needs none.
  const dhcp = await provisionOne(here.fleet, { network: { ip: "dhcp" } });
  expect(dhcp.address).not.toMatch(/^127\.77\.0\./);
  const [waiting, failing] = [
    await here.fleet.provision({ template: "cmux-base" }),
    await here.fleet.provision({ template: "cmux-base" }),
  ];
  await useUpAttempts(here, failing, 8);
  await failure(failing.result({ timeoutMs: 20_000 }), "address_range_exhausted");
  expect(await firstFailure(waiting)).toBe("address_range_exhausted");
  await run(here.fleet, "destroy", { sandboxId: two.sandboxId });
  expect((await waiting.result({ timeoutMs: 30_000 })).address).toBe(two.address);
});

test("VMIDs come from the range in turn, and none is used again before the whole range was", async () => {
  const here = await startFleet({ PVE_VMID_RANGE: "30000-30002" });
  const first = await provisionOne(here.fleet);
  const second = await provisionOne(here.fleet);
  expect([first.vmid, second.vmid]).toEqual([30_000, 30_001]);
  await run(here.fleet, "destroy", { sandboxId: first.sandboxId });
  const third = await provisionOne(here.fleet);
  expect(third.vmid).toBe(30_002);
  const fourth = await provisionOne(here.fleet);
  expect(fourth.vmid).toBe(30_000);
  const failing = await here.fleet.provision({ template: "cmux-base" });
  await useUpAttempts(here, failing, 8);
  await failure(failing.result({ timeoutMs: 20_000 }), "vmid_range_exhausted");
});
