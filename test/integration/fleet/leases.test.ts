/** VMIDs and addresses that are leased: each to one sandbox at a time, given back at its end. */
import { afterEach, expect, test } from "vitest";
import { Client } from "../../pve/client.ts";
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
  await failure(failing.result({ timeoutMs: 60_000 }), "address_range_exhausted");
  expect(await firstFailure(waiting)).toBe("address_range_exhausted");
  await run(here.fleet, "destroy", { sandboxId: two.sandboxId });
  expect((await waiting.result({ timeoutMs: 60_000 })).address).toBe(two.address);
});

test("VMIDs come from the range in turn; then the one that was given back longest ago, and an error when none is left", async () => {
  const here = await startFleet({ PVE_VMID_RANGE: "30000-30004" });
  const { fleet, redis, keys } = here;
  await using pve = new Client(here.pve);
  const next = async () => {
    const { vmid, sandboxId } = await provisionOne(fleet);
    return { vmid, end: () => run(fleet, "destroy", { sandboxId }) };
  };
  const [zero, one] = [await next(), await next()];
  expect([zero.vmid, one.vmid]).toEqual([30_000, 30_001]);
  // One that somebody chose counts from its release, too.
  await pve.task("POST", "/nodes/pve1/lxc/9001/clone", { newid: 30_003, hostname: "cmux-30003" });
  const chosen = await run(fleet, "adopt", { node: "pve1", vmid: 30_003 });
  await one.end();
  await run(fleet, "destroy", { sandboxId: chosen.sandboxId });
  await zero.end();
  const turn = [await next(), await next(), await next()];
  expect(turn.map(({ vmid }) => vmid)).toEqual([30_002, 30_004, 30_001]);
  // Nearly all are in use: what is left passes sooner, in the same order.
  await turn[1]?.end();
  expect([(await next()).vmid, (await next()).vmid, (await next()).vmid]).toEqual([30_003, 30_000, 30_004]);
  const failing = await fleet.provision({ template: "cmux-base" });
  await useUpAttempts(here, failing, 8);
  await failure(failing.result({ timeoutMs: 60_000 }), "vmid_range_exhausted");
  // An earlier version did not write down that it gave one back.
  await turn[0]?.end();
  await redis.zrem(keys.vmidsFreed, "30002");
  expect((await next()).vmid).toBe(30_002);
});
