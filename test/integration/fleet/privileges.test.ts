/** A token that lacks one privilege: the error names it, the path and the command, and nothing half-done stays. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { JobInput } from "../../../producers/index.ts";
import { ROLE } from "../../../workers/doctor/privileges.ts";
import type { FleetWorkers } from "../../../workers/fleet.ts";
import { type Bed, containerOf, failure, provisionOne, run, startBed, until, within } from "./harness.ts";

let bed: Bed;
let token: string;
let workers: FleetWorkers;
beforeAll(async () => {
  bed = await startBed({ workers: "none", pve: { nodes: 1, timings: { resourcesLag: 0 } } });
  token = bed.pve.addToken({ user: "fleet@pve", id: "worker", privileges: { "/": [...ROLE] } });
  workers = await bed.startWorkers({ PVE_API_TOKEN: token });
});
afterAll(() => bed.close());
afterEach(() => {
  without();
  bed.pve.faults.node("pve1", "online");
});

const without = (...missing: string[]) =>
  bed.pve.changeToken(token, { privileges: { "/": ROLE.filter((one) => !missing.includes(one)) } });

const wayOut = (path: string, role: string) =>
  `pveum acl modify ${path} --users 'fleet@pve' --tokens 'fleet@pve!worker' --roles ${role}`;

test("the README's role is enough for everything", async () => {
  const input = {
    cores: 1,
    memoryMib: 256,
    diskGib: 5,
    tags: ["t"],
    network: { vlan: 7 },
    features: { nesting: true },
  };
  const { sandboxId } = await provisionOne(bed.fleet, input);
  await run(bed.fleet, "snapshot", { sandboxId });
  await run(bed.fleet, "configure", { sandboxId, cores: 2, diskGib: 6 });
  await run(bed.fleet, "power", { sandboxId, action: "reboot" });
  await run(bed.fleet, "destroy", { sandboxId });
  expect(bed.pve.log().filter(({ status }) => status === 403)).toEqual([]);
});

test("without the rights to look at nodes and pools it works all the same", async () => {
  without("Sys.Audit", "Pool.Audit");
  await provisionOne(bed.fleet);
});

test("without Sys.Audit a node's start anew shows in its having been away, and what its shutdown stopped runs again", async () => {
  without("Sys.Audit");
  const [ran, rested, given] = await Promise.all([1, 2, 3].map(() => provisionOne(bed.fleet)));
  if (!ran || !rested || !given) throw new Error("unreachable");
  const stop = ({ sandboxId }: typeof ran) => run(bed.fleet, "power", { sandboxId, action: "stop" });
  await stop(rested);
  const stateOf = async ({ sandboxId }: typeof ran) => (await bed.fleet.sandboxes.get(sandboxId)).state;
  await bed.fleet.reconcile();
  await bed.pve.faults.shutDown("pve1");
  await bed.fleet.reconcile();
  expect(await Promise.all([ran, given].map(stateOf))).toEqual(["stopped", "stopped"]);
  await stop(given);
  bed.pve.faults.node("pve1", "unreachable");
  // No round sees it, for half a minute.
  await failure(bed.fleet.reconcile(), "node_unreachable");
  await bed.redis.hset(bed.keys.nodesSeen, "pve1", Date.now() - 31_000);
  bed.pve.faults.node("pve1", "online");
  const isUp = async () => containerOf(bed, ran.vmid)?.status === "running" && (await stateOf(ran)) === "running";
  await until(isUp, "its start", 30_000);
  const marked = await bed.redis.smembers(bed.keys.restarts);
  expect([ran, rested, given].map(({ sandboxId }) => marked.includes(sandboxId))).toEqual([true, false, false]);
  expect([rested, given].map(({ vmid }) => containerOf(bed, vmid)?.status)).toEqual(["stopped", "stopped"]);
  for (const { sandboxId } of [ran, rested, given]) await run(bed.fleet, "destroy", { sandboxId });
  expect(await bed.redis.smembers(bed.keys.restarts)).not.toContain(ran.sandboxId);
});

test("without Sys.Audit a node whose containers ran through its absence was not started anew: what was stopped meanwhile rests", async () => {
  without("Sys.Audit");
  const [ran, stopped] = await Promise.all([1, 2].map(() => provisionOne(bed.fleet)));
  if (!ran || !stopped) throw new Error("unreachable");
  await bed.fleet.reconcile();
  bed.pve.faults.node("pve1", "unreachable");
  await failure(bed.fleet.reconcile(), "node_unreachable");
  bed.pve.faults.ranFor(ran.vmid, 60);
  bed.pve.faults.crash(stopped.vmid);
  await bed.redis.hset(bed.keys.nodesSeen, "pve1", Date.now() - 31_000);
  bed.pve.faults.node("pve1", "online");
  await bed.fleet.reconcile();
  expect(await bed.redis.smembers(bed.keys.restarts)).not.toContain(stopped.sandboxId);
  const isStopped = async () => (await bed.fleet.sandboxes.get(stopped.sandboxId)).state === "stopped";
  await until(isStopped, "what a human stopped");
  expect(containerOf(bed, stopped.vmid)?.status).toBe("stopped");
  for (const { sandboxId } of [ran, stopped]) await run(bed.fleet, "destroy", { sandboxId });
});

describe("a provision", () => {
  const MADE = { undone: ["container"] };
  const CASES: [string, string, string, Partial<JobInput<"provision">>, object?][] = [
    ["VM.Clone", "/vms/9001", "PVEVMAdmin", {}],
    ["VM.Allocate", "/vms", "PVEVMAdmin", {}],
    ["Datastore.AllocateSpace", "/storage/local-lvm", "PVEDatastoreUser", {}],
    ["SDN.Use", "/sdn/zones/localnetwork/vmbr0", "PVESDNUser", {}],
    ["VM.Config.Network", "/vms/2", "PVEVMAdmin", {}, MADE],
    ["VM.Config.CPU", "/vms/2", "PVEVMAdmin", { cores: 1 }, MADE],
    ["VM.Config.Memory", "/vms/2", "PVEVMAdmin", { memoryMib: 256 }, MADE],
    ["VM.Config.Disk", "/vms/2", "PVEVMAdmin", { diskGib: 8 }, MADE],
    ["VM.Config.Options", "/vms/2", "PVEVMAdmin", { tags: ["mine"] }, MADE],
    ["VM.PowerMgmt", "/vms/2", "PVEVMAdmin", {}, MADE],
  ];
  test.each(CASES)("without %s", async (privilege, path, role, input, facts = {}) => {
    without(privilege);
    const handle = await bed.fleet.provision({ template: "cmux-base", ...input });
    const error = await failure(handle.result({ timeoutMs: 60_000 }), "forbidden");
    expect(error.facts).toMatchObject({ privilege, path: expect.stringContaining(path), ...facts });
    expect(error.text).toContain(privilege);
    expect(error.text).toContain(wayOut(path.startsWith("/vms") ? "/vms" : path, role));
    expect(bed.pve.containers().filter(({ config }) => config["description"]?.includes(handle.sandboxId))).toEqual([]);
    expect(containerOf(bed, 9_001)?.lock).toBeUndefined();
  });
});

test("a snapshot, a change, a power action and a destroy, which can be asked for again", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet);
  const forbidden = async (privilege: string, result: () => Promise<unknown>) => {
    without(privilege);
    const error = await failure(result(), "forbidden");
    expect(error.facts).toMatchObject({ privilege, path: `/vms/${vmid}` });
    expect(error.text).toContain(wayOut("/vms", "PVEVMAdmin"));
  };
  await forbidden("VM.Snapshot", () => run(bed.fleet, "snapshot", { sandboxId }));
  await forbidden("VM.Config.CPU", () => run(bed.fleet, "configure", { sandboxId, cores: 1 }));
  await forbidden("VM.PowerMgmt", () => run(bed.fleet, "power", { sandboxId, action: "stop" }));
  await forbidden("VM.Allocate", () => run(bed.fleet, "destroy", { sandboxId }));
  expect(await bed.fleet.sandboxes.get(sandboxId)).toMatchObject({ state: "running" });
  without();
  expect(await run(bed.fleet, "destroy", { sandboxId })).toMatchObject({ existed: true });
});

describe("what the token does not see", () => {
  /** The lists come back without it, so the workers have to read them first. */
  async function unseen(privilege: string, isTrue: () => boolean) {
    without(privilege);
    await until(async () => {
      await workers.context.inventory.refresh(within());
      return isTrue();
    }, `an inventory without ${privilege}`);
  }
  const inventory = () => workers.context.inventory.current();
  afterEach(async () => {
    without();
    const sees = () =>
      inventory().replicas.length > 0 && inventory().nodes.every(({ storages }) => storages.length > 0);
    await until(async () => (await workers.context.inventory.refresh(within())) && sees(), "the whole inventory");
  });

  test("templates: the error says that it may be a right", async () => {
    await unseen("VM.Audit", () => inventory().replicas.length === 0);
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    const error = await failure(handle.result({ timeoutMs: 60_000 }), "template_not_found");
    expect(error.text).toContain("VM.Audit: pveum acl modify /vms ");
  });

  test("storages: not taken for storages that can't link", async () => {
    await unseen("Datastore.Audit", () => inventory().nodes.every(({ storages }) => storages.length === 0));
    const handle = await bed.fleet.provision({ template: "cmux-base" });
    const error = await failure(handle.result({ timeoutMs: 60_000 }), "forbidden");
    expect(error.facts).toMatchObject({ privilege: "Datastore.Audit", path: "/storage/local-lvm" });
    expect(error.text).toContain("pveum acl modify /storage/local-lvm ");
  });
});
