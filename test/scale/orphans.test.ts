/** A thousand containers that nobody owns among five thousand on twenty nodes: all found, all gone, no other touched. */
import { monitorEventLoopDelay } from "node:perf_hooks";
import { afterAll, beforeAll, expect, test } from "vitest";
import { NodeName, newOperationId, newSandboxId, TeamId, Vmid } from "../../shared/ids.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import { createStrays } from "../../shared/state/strays.ts";
import type { WorkerContext } from "../../workers/context.ts";
import { adoptNode } from "../../workers/control/adopt-node.ts";
import { reconcile } from "../../workers/control/round.ts";
import { formatDescription } from "../../workers/sandbox/stamp.ts";
import { type Bed, containerOf, startBed, until, within } from "../integration/fleet/harness.ts";
import { groupBy, mostAtOnce } from "../integration/fleet/overlap.ts";
import { Client } from "../pve/client.ts";

const NODES = 20;
const SLOTS = 4;
const GRACE_SEC = 1;
let bed: Bed;
let context: WorkerContext;
beforeAll(async () => {
  // No clockwork: each round is the test's own, so that its requests can be counted.
  bed = await startBed({
    pve: { nodes: NODES, timings: { resourcesLag: 0 } },
    env: {
      FLEET_ROLES: "ops",
      PVE_POOL: "fleet",
      FLEET_NODE_SLOTS: String(SLOTS),
      FLEET_STRAY_GRACE_SECONDS: String(GRACE_SEC),
      FLEET_ORPHAN_GRACE_HOURS: "0",
    },
  });
  context = bed.workers?.context ?? expect.fail();
  // As long ago: this Redis knows what runs on the nodes.
  const server = /run_id:(\w+)/.exec(await bed.redis.info("server"))?.[1] ?? "";
  await adoptNode(context, NodeName.parse(bed.pve.nodes[0]), server);
});
afterAll(() => bed.close());

const team = TeamId.parse("default");

interface Maker {
  origin?: string;
  stamped?: boolean;
  template?: boolean;
  adopted?: true;
  /** The pool that it is in. */
  pool?: "fleet" | "other";
}

let at = 0;
const pools = new Map<string, number[]>([
  ["fleet", []],
  ["other", []],
]);

/** A container at the next VMID from there on, on the next node. */
async function make(first: number, { origin, stamped = true, template = false, adopted, pool = "fleet" }: Maker = {}) {
  const index = at++;
  const node = bed.pve.nodes[index % NODES] ?? "";
  const vmid = Vmid.parse(first + index);
  const sandbox = newSandboxId();
  const stamp = {
    fleet: bed.keys.prefix,
    vmid,
    sandbox,
    operation: newOperationId(),
    team,
    at: Date.now() - 86_400_000,
    origin: origin ?? context.origin,
    ...(adopted ? { adopted } : {}),
  };
  const description = stamped ? formatDescription(stamp, { token: null, text: "notes" }) : "a human's";
  bed.pve.addTemplate({ name: `ct-${vmid}`, node, vmid, template, hookscript: false, config: { description } });
  pools.get(pool)?.push(vmid);
  return { node, vmid, sandbox, operation: stamp.operation };
}

/** One of the four thousand that somebody has. */
async function makeOwned() {
  const { node, vmid, sandbox, operation } = await make(20_000);
  const fields = { id: sandbox, operation, team, template: "cmux-base", state: "stopped", node, vmid };
  const { memory = 512, cores = 0 } = containerOf(bed, vmid)?.config ?? {};
  const reserved = { memoryMib: Number(memory), disks: { local: 100 }, cores: Number(cores) };
  return bed.redis
    .multi()
    .hset(bed.keys.sandbox(sandbox), ...encodeFields({ ...fields, hostname: `ct-${vmid}`, createdAt: 1 }).set)
    .hset(bed.keys.vmids, vmid, sandbox)
    .hset(bed.keys.reserved(node), sandbox, JSON.stringify(reserved))
    .zadd(bed.keys.sandboxes, 1, sandbox)
    .zadd(bed.keys.teamSandboxes(team), 1, sandbox)
    .exec();
}

const many = <T>(count: number, work: () => Promise<T>) => Promise.all(Array.from({ length: count }, work));
const lxc = () => bed.pve.log().filter(({ path }) => path.includes("/lxc/"));
const vmids = () => bed.pve.containers().map(({ vmid }) => vmid);

test("a thousand orphans among five thousand containers", { timeout: 240_000 }, async () => {
  const orphans = new Set((await many(1_000, () => make(20_000))).map(({ vmid }) => Number(vmid)));
  await many(3_700, makeOwned);
  // Whom it must not touch, though no record owns them.
  await many(100, () => make(20_000, { stamped: false }));
  await many(50, () => make(20_000, { template: true }));
  await many(50, () => make(20_000, { origin: "another Redis" }));
  await many(30, () => make(20_000, { adopted: true }));
  await many(20, () => make(20_000, { pool: "other" }));
  await many(50, () => make(40_000));
  const all = new Set(vmids());
  expect(all.size).toBe(5_000 + NODES); // and a template a node
  await using client = new Client(bed.pve);
  for (const [pool, members] of pools) {
    await client.data("POST", "/pools", { poolid: pool });
    for (let from = 0; from < members.length; from += 500)
      await client.data("PUT", `/pools/${pool}`, { vms: members.slice(from, from + 500).join(",") });
  }
  await context.inventory.refresh(within());
  const signal = within(200_000);

  // One round finds them all, and asks PVE one thing.
  const before = bed.pve.log().length;
  const begun = performance.now();
  const found = await reconcile(context, { signal });
  const foundMs = performance.now() - begun;
  const asked = bed.pve.log().slice(before);
  expect(asked.map(({ path }) => path)).toEqual(["/cluster/resources"]);
  const quarantined = new Set((await createStrays(bed.redis, bed.keys).list()).keys());
  expect([...orphans].filter((vmid) => !quarantined.has(Vmid.parse(vmid)))).toEqual([]);
  expect(found.filter(({ done }) => done !== "waits")).toEqual([]);
  expect(new Set(vmids())).toEqual(all);

  // The dry run names the very same, and does nothing.
  await until(() => performance.now() - begun > GRACE_SEC * 1_000, "the grace time");
  const dry = await reconcile(context, { signal, dryRun: true });
  const doomed = dry.filter(({ done }) => done === "to remove").map(({ vmid }) => Number(vmid));
  expect(new Set(doomed)).toEqual(orphans);
  expect(new Set(vmids())).toEqual(all);

  const readsBefore = lxc().length;
  const removing = performance.now();
  await reconcile(context, { signal });
  const removedMs = performance.now() - removing;
  expect(new Set(vmids())).toEqual(new Set([...all].filter((vmid) => !orphans.has(vmid))));
  const requests = lxc().slice(readsBefore);
  for (const vmid of orphans) {
    const own = requests.filter(({ path }) => path.includes(`/lxc/${vmid}`));
    expect(own.map(({ method, path }) => `${method} ${path.split("/").at(-1)}`)).toEqual([
      "GET config",
      `DELETE ${vmid}`,
    ]);
  }
  for (const [, tasks] of groupBy(bed.pve.tasks(), ({ node }) => node))
    expect(mostAtOnce(tasks)).toBeLessThanOrEqual(SLOTS);
  const events = (await bed.redis.xrange(bed.keys.events, "-", "+")).map(([, fields]) => fields[1]);
  const count = (type: string) => events.filter((one) => one === type).length;
  // Another Redis' and adopted ones are told of, and left.
  expect([count("container.removed"), count("container.quarantined"), events.length]).toEqual([1_000, 80, 1_080]);

  // A round that finds nothing new: what it takes of this process beside PVE's answer, and for how long others wait.
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const cpu = process.cpuUsage();
  const quiet = performance.now();
  const guests = await context.pve.clusterResources({}, { signal });
  const listedMs = performance.now() - quiet;
  delay.enable();
  const findings = await reconcile(
    { ...context, pve: { ...context.pve, clusterResources: async () => guests } },
    { signal },
  );
  delay.disable();
  const { user, system } = process.cpuUsage(cpu);
  expect(findings.filter(({ what }) => what === "drift" || what === "ghost" || what === "lock")).toEqual([]);
  const figures = {
    listedMs: Math.round(listedMs),
    roundMs: Math.round(performance.now() - quiet - listedMs),
    cpuMs: Math.round((user + system) / 1_000),
    longestWaitMs: Math.round(delay.max / 1e6),
  };
  console.log(`a round over ${guests.length} guests: ${JSON.stringify(figures)}`);
  const owned = new Set(await bed.redis.hkeys(bed.keys.vmids));
  for (const vmid of vmids()) if (vmid >= 20_000 && !owned.has(String(vmid))) bed.pve.faults.vanish(vmid);
  const seconds = (ms: number) => (ms / 1_000).toFixed(1);
  console.log(`found in ${seconds(foundMs)} s, removed in ${seconds(removedMs)} s`);
});
