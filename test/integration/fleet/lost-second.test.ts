/** Redis comes back without its last writes: limits hold, nothing is doubled, and what nobody knows any more is removed. */
import { afterEach, expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { NodeName, newFence, Vmid } from "../../../shared/ids.ts";
import { loadReservation, reserve, unreserve } from "../../../shared/placement/reservation.ts";
import { createOperationStore, type Writer } from "../../../shared/state/operations.ts";
import { createSlots, slotOf } from "../../../shared/state/slots.ts";
import { createStrays } from "../../../shared/state/strays.ts";
import { markRedis } from "../../redis-rewind.ts";
import { type Bed, failure, provisionOne, run, startBed, until } from "./harness.ts";
import { mostAtOnce } from "./overlap.ts";

let bed: Bed | undefined;
afterEach(async () => {
  await bed?.close();
  bed = undefined;
});

async function startFleet(options: { workers?: "none"; nodes?: number; env?: Record<string, string> } = {}) {
  bed = await startBed({
    redis: { engine: "process" },
    pve: { nodes: options.nodes ?? 1, timings: { cloneLinked: 15_000 } },
    env: { FLEET_STRAY_GRACE_SECONDS: "1", ...options.env },
    ...(options.workers ? { workers: options.workers } : {}),
  });
  return bed;
}

/** Kills Redis, takes it back to the mark, starts it again. */
async function rewind({ redisServer }: Bed, goBack: () => Promise<void>) {
  await redisServer.kill("SIGKILL");
  await goBack();
  await redisServer.restart();
}

const PATIENCE = { timeoutMs: 40_000 };
const own = (here: Bed) => here.pve.containers().filter(({ template }) => !template);
const cloning = (here: Bed) =>
  until(() => here.pve.tasks().find(({ type, endedAt }) => type === "vzclone" && endedAt === undefined), "a clone");

/** Waits until only so many containers are left, and everything that was held for the others has been given back. */
const settled = async (here: Bed, left: number) => {
  const { redis, keys } = here;
  const idle = async () =>
    (await redis.exists(keys.strays, keys.slot("node-pve1"), keys.slot("replica-pve1-9001"))) === 0;
  await until(async () => own(here).length === left && (await idle()), "the removal of what was forgotten", 40_000);
};

/** Redis knows until when it was written to. */
const beating = ({ redis, keys }: Bed) =>
  until(async () => (await redis.exists(`${keys.prefix}:pulse`)) === 1, "the first beat");

test("a run whose record went back may not write any more; a write that is sent again is one", async () => {
  const here = await startFleet({ workers: "none" });
  const { redis, keys, fleet } = here;
  const store = createOperationStore(redis, keys, { retentionSec: 60 });
  const { id } = await fleet.provision({ template: "cmux-base" });
  const claim = await store.claim(id, newFence());
  if (claim.outcome !== "claimed") throw new Error(claim.outcome);
  const { writer } = claim;
  const before = await redis.hgetall(keys.operation(id));
  const again = { ...writer };
  await store.write(writer, { also: [["INCR", `${keys.prefix}:written`]] });
  await store.write(again, { also: [["INCR", `${keys.prefix}:written`]] });
  expect(await redis.getdel(`${keys.prefix}:written`)).toBe("1");
  expect(again).toEqual(writer);
  await redis.hset(keys.operation(id), before);
  const error = await failure(store.write(writer, { operation: { waitingFor: "nothing" } }), "lock_lost");
  expect(error.facts).toMatchObject({ why: "rewound" });
  // The next run goes on from what Redis has.
  const next = await store.claim(id, newFence());
  if (next.outcome !== "claimed") throw new Error(next.outcome);
  await store.end(next.writer, { status: "canceled", error }, { sandbox: { state: "failed" } });
  await store.end(next.writer, { status: "canceled", error }); // again, after a lost reply
});

test("what was leased, claimed or taken and then forgotten lets its run write no more", async () => {
  const here = await startFleet({ workers: "none" });
  const { redis, keys, fleet } = here;
  const store = createOperationStore(redis, keys, { retentionSec: 60 });
  const slots = createSlots(redis, keys);
  const { id } = await fleet.provision({ template: "cmux-base" });
  const claim = async () => {
    const got = await store.claim(id, newFence());
    if (got.outcome !== "claimed") throw new Error(got.outcome);
    return got;
  };
  const range = { first: "127.77.0.1", last: "127.77.0.9", bits: 8 };
  const steps: ((writer: Writer) => Promise<unknown>)[] = [
    (writer) => store.leaseVmid(writer, { first: 20_000, last: 20_009 }),
    (writer) => store.leaseAddress(writer, range),
    (writer) => store.claimAddress(writer, "127.77.0.1"),
  ];
  for (const step of steps) {
    const { writer } = await claim();
    const before = await redis.hgetall(keys.operation(id));
    // Again after a lost reply: the same, once.
    const again = { ...writer };
    const made = await step(writer);
    expect([await step(again), again]).toEqual([made, writer]);
    await redis.hset(keys.operation(id), before);
    const error = await failure(store.write(writer, { sandbox: { state: "cloning" } }), "lock_lost");
    expect(error.facts).toMatchObject({ why: "rewound" });
  }
  expect(await redis.hlen(keys.vmids)).toBe(1);
  // A slot that is lost without anything of the record.
  const { writer } = await claim();
  const holds = [slotOf.replica("pve1", 9_001)];
  for (const name of holds) await slots.take(name, 1, writer);
  await store.write(writer, { holds });
  for (const name of holds) await redis.hdel(keys.slot(name), id);
  await failure(store.write(writer, { holds }), "lock_lost");
  const last = await claim();
  await store.end(
    last.writer,
    { status: "canceled", error: new FleetError("canceled", "done") },
    {
      sandbox: { state: "failed" },
      also: [
        ["DEL", keys.vmids],
        ["DEL", keys.ips],
        ["DEL", keys.addresses],
      ],
    },
  );
});

test("a run whose provision was given a container may neither write nor take a slot", async () => {
  const here = await startFleet({ workers: "none" });
  const { redis, keys, fleet } = here;
  const store = createOperationStore(redis, keys, { retentionSec: 60 });
  const { id, sandboxId } = await fleet.provision({ template: "cmux-base" });
  const claim = async () => {
    const got = await store.claim(id, newFence(), { job: id, lockKey: "", lockToken: "" });
    if (got.outcome !== "claimed") throw new Error(got.outcome);
    return got;
  };
  const { writer } = await claim();
  const node = NodeName.parse("pve2");
  const placed = { memoryMib: 512, disks: {} };
  await store.write(writer, { sandbox: { node }, also: reserve(keys, node, sandboxId, placed) });
  const place = { node: NodeName.parse("pve1"), vmid: Vmid.parse(20_001) };
  const changes = () => redis.hmget(keys.reservedChanges, "pve1", "pve2");
  expect(await changes()).toEqual([null, "1"]);
  expect(await createStrays(redis, keys).adopt({ operation: id, sandbox: sandboxId }, place)).toBe(true);
  // Placement reads both nodes again.
  expect(await changes()).toEqual(["1", "2"]);
  expect(await loadReservation(redis, keys, "pve1", sandboxId)).toEqual(placed);
  await failure(store.write({ ...writer }, { sandbox: { state: "cloning", vmid: Vmid.parse(20_002) } }), "lock_lost");
  await failure(store.leaseVmid({ ...writer }, { first: 20_000, last: 20_009 }), "lock_lost");
  await failure(createSlots(redis, keys).take(slotOf.replica("pve1", 9_001), 1, writer), "lock_lost");
  const next = await claim();
  expect(next.sandbox).toMatchObject({ ...place, state: "cloning" });
  await store.end(
    next.writer,
    { status: "canceled", error: new FleetError("canceled", "done") },
    { sandbox: { state: "failed" }, also: [["DEL", keys.vmids], ...unreserve(keys, "pve1", sandboxId)] },
  );
});

test("a provision that stands in line, as far as Redis knows, goes on with its container", async () => {
  const here = await startFleet({ workers: "none" });
  const { redis, keys, fleet } = here;
  const store = createOperationStore(redis, keys, { retentionSec: 60 });
  const first = await fleet.provision({ template: "cmux-base" });
  const { id, sandboxId } = await fleet.provision({ template: "cmux-base" });
  expect(await redis.hget(keys.operation(id), "parked")).toBe("1");
  const place = { node: NodeName.parse("pve1"), vmid: Vmid.parse(20_001) };
  expect(await createStrays(redis, keys).adopt({ operation: id, sandbox: sandboxId }, place)).toBe(true);
  expect(await redis.hget(keys.operation(id), "parked")).toBe("0");
  for (const one of [first.id, id]) {
    const got = await store.claim(one, newFence(), { job: one, lockKey: "", lockToken: "" });
    if (got.outcome !== "claimed") throw new Error(got.outcome);
    if (one === id) expect(got.sandbox).toMatchObject({ ...place, state: "cloning" });
    await store.end(
      got.writer,
      { status: "canceled", error: new FleetError("canceled", "done") },
      { sandbox: { state: "failed" }, also: [["DEL", keys.vmids]] },
    );
  }
});

test("a round of the reconcile that slept takes no VMID that another has settled meanwhile", async () => {
  const { redis, keys } = await startFleet({ workers: "none" });
  const strays = createStrays(redis, keys);
  const vmid = Vmid.parse(20_001);
  const entry = { node: NodeName.parse("pve1"), since: Date.now(), lookAt: Date.now() };
  await strays.note(vmid, entry);
  expect(await strays.lease(vmid)).toBe(true);
  expect(await strays.lease(vmid)).toBe(true); // after a failure, in the next round
  await strays.forget(vmid);
  expect(await strays.lease(vmid)).toBe(false);
  expect(await redis.exists(keys.vmids, keys.strays)).toBe(0);
  await redis.hset(keys.vmids, vmid, "sbx_somebody");
  await strays.note(vmid, entry);
  expect(await strays.lease(vmid)).toBe(false);
  await redis.del(keys.vmids, keys.strays);
});

test("a task whose slot is forgotten keeps its slot until it has ended", async () => {
  const here = await startFleet({ env: { FLEET_NODE_SLOTS: "1" } });
  await beating(here);
  const goBack = await markRedis(here.redisServer);
  const forgotten = await here.fleet.provision({ template: "cmux-base" });
  await cloning(here);
  await rewind(here, goBack);
  const next = await here.fleet.provision({ template: "cmux-base" });
  await next.result(PATIENCE);
  expect(mostAtOnce(here.pve.tasks())).toBe(1);
  await failure(forgotten.result(PATIENCE), "operation_unknown");
  // Its container is nobody's: found by its stamp, and removed.
  await settled(here, 1);
  expect(mostAtOnce(here.pve.tasks())).toBe(1);
});

test("a provision whose clone is forgotten gets the container back that it made", async () => {
  const here = await startFleet({ workers: "none", nodes: 3 });
  const handle = await here.fleet.provision({ template: "cmux-base" });
  const goBack = await markRedis(here.redisServer); // accepted, not yet placed
  const workers = await here.startWorkers();
  const clone = await cloning(here);
  await rewind(here, goBack);
  const { vmid } = await handle.result(PATIENCE);
  expect(vmid).toBe(clone.target);
  expect(own(here)).toMatchObject([{ vmid, status: "running" }]);
  await settled(here, 1);
  expect(here.pve.tasks().map(({ type }) => type)).toEqual(["vzclone", "vzstart"]);
  await workers.close();
});

test("the same key after a lost second makes one sandbox", async () => {
  const here = await startFleet();
  await provisionOne(here.fleet);
  await beating(here);
  const goBack = await markRedis(here.redisServer);
  const ask = () => here.fleet.provision({ template: "cmux-base" }, { idempotencyKey: "workspace 7" });
  const first = await ask();
  await cloning(here);
  await rewind(here, goBack);
  await failure(first.result(PATIENCE), "operation_unknown");
  const second = await ask();
  const [a, b] = await Promise.all([second.result(PATIENCE), (await ask()).result(PATIENCE)]);
  expect(a).toEqual(b);
  await settled(here, 2);
});

test("a member of a pool whose claim Redis forgot is given to nobody else", async () => {
  const here = await startFleet();
  await here.fleet.pools.set("cmux-base", { min: 1, max: 1 });
  await until(async () => (await here.fleet.pools.list())[0]?.ready === 1, "a member", 20_000);
  await beating(here);
  const goBack = await markRedis(here.redisServer);
  const first = await provisionOne(here.fleet);
  expect(first.warm).toBe(true);
  await rewind(here, goBack);
  const others = await Promise.all([provisionOne(here.fleet), provisionOne(here.fleet)]);
  expect(others.map(({ vmid }) => vmid)).not.toContain(first.vmid);
  await until(() => own(here).every(({ vmid }) => vmid !== first.vmid), "the end of what was claimed", 20_000);
  await here.fleet.pools.remove("cmux-base");
  await settled(here, 2);
});

test("a sandbox whose destroy Redis forgot is lost: nothing is held for a container that is gone", async () => {
  const here = await startFleet();
  const { sandboxId } = await provisionOne(here.fleet);
  await beating(here);
  const goBack = await markRedis(here.redisServer);
  await run(here.fleet, "destroy", { sandboxId });
  await rewind(here, goBack);
  expect((await here.fleet.sandboxes.get(sandboxId)).state).toBe("running");
  const isLost = async () => (await here.fleet.sandboxes.get(sandboxId)).state === "lost";
  await until(isLost, "the end of its record", 20_000);
  expect(await here.redis.exists(here.keys.vmids)).toBe(0);
});
