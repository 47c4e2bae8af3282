/** Where disks go: storages that can't clone linked, PVE_STORAGE, storages of mount points, and room on them. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  const local = { name: "local", type: "dir", sizeGib: 100 } as const;
  const thin = { name: "local-lvm", type: "lvmthin", sizeGib: 50 } as const;
  const data = { name: "data", type: "zfspool", sizeGib: 100 } as const;
  bed = await startBed({
    env: { PVE_STORAGE: "data", FLEET_DISK_OVERCOMMIT: "1" },
    pve: {
      nodes: [
        { name: "pve1", storages: [local, thin] },
        { name: "pve2", storages: [local, thin, data] },
      ],
      templates: [1, 2].flatMap((at) => [
        { node: `pve${at}`, vmid: 9_000 + at },
        { node: `pve${at}`, vmid: 9_010 + at, name: "on-dir", storage: "local" },
      ]),
    },
  });
});
afterAll(() => bed.close());

const rootOf = (vmid: number) => containerOf(bed, vmid)?.config["rootfs"];

test("what can't be cloned linked is refused, or cloned full to PVE_STORAGE where the input allows it", async () => {
  const refused = await bed.fleet.provision({ template: "on-dir" });
  const error = await failure(refused.result({ timeoutMs: 60_000 }), "linked_clone_unsupported");
  expect(error.text).toContain('ask for clone: "full" or "linked_or_full"');
  const fallen = await provisionOne(bed.fleet, { template: "on-dir", clone: "linked_or_full" });
  expect(fallen.node).toBe("pve2");
  expect(rootOf(fallen.vmid)).toMatch(/^data:/);
  const full = await provisionOne(bed.fleet, { clone: "full" });
  expect(rootOf(full.vmid)).toMatch(/^data:/);
  const linked = await provisionOne(bed.fleet, { clone: "linked_or_full" });
  expect(rootOf(linked.vmid)).toMatch(/^local-lvm:/);
  for (const { sandboxId } of [fallen, full, linked]) await run(bed.fleet, "destroy", { sandboxId });
});

test("a mount point's storage decides on the node", async () => {
  const mount = { storage: "data", sizeGib: 2, path: "/data" };
  const { node, vmid } = await provisionOne(bed.fleet, { mountPoints: [mount] });
  expect(node).toBe("pve2");
  expect(containerOf(bed, vmid)?.config["mp0"]).toMatch(/^data:.*mp=\/data/);
  const unknown = await bed.fleet.provision({
    template: "cmux-base",
    mountPoints: [{ ...mount, storage: "nope" }],
  });
  const error = await failure(unknown.result({ timeoutMs: 60_000 }), "storage_not_found");
  expect(error.text).toContain("there is no storage nope; storages are local, local-lvm, data");
});

test("without room on the disks it waits, says why, and goes on when room is freed", async () => {
  const large = await provisionOne(bed.fleet, { node: "pve1", diskGib: 40 });
  const next = await bed.fleet.provision({ template: "cmux-base", node: "pve1", diskGib: 20 });
  const waits = async () => (await next.status()).waitingFor === "pve1: no disk left for 20 GiB on local-lvm";
  await until(waits, "the reason");
  await run(bed.fleet, "destroy", { sandboxId: large.sandboxId });
  expect(await next.result({ timeoutMs: 60_000 })).toMatchObject({ node: "pve1" });
});

test("with every slot taken it waits, says why, and goes on when one is free", async () => {
  const held = bed.pve.faults.request({ kind: "hang", method: "POST", path: "/nodes/pve1/.*/clone$", times: 9 });
  const many = await Promise.all(
    Array.from({ length: 7 }, () => bed.fleet.provision({ template: "cmux-base", node: "pve1" })),
  );
  const reasons = () => Promise.all(many.map(async (one) => (await one.status()).waitingFor));
  await until(async () => (await reasons()).includes("all slots of 1 node(s) are busy"), "the reason");
  held.release();
  await Promise.all(many.map((one) => one.result({ timeoutMs: 60_000 })));
});
