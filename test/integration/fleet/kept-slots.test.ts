/** Slots outlive jobs and workers: an operation keeps them while its PVE task may run, and is in nobody's way. */
import { expect, test } from "vitest";
import { createQueues, nodeQueue } from "../../../shared/queues.ts";
import { slotOf } from "../../../shared/state/slots.ts";
import { provisionOne, startBed, until } from "./harness.ts";
import { mostAtOnce } from "./overlap.ts";

/** Scaled like all times of the stand-in; longer than a dead worker's lock, so that another run takes over in the middle. */
const GRACE_SEC = 100;

test("whoever waits for a slot of an operation that waits itself lets it go first", async () => {
  const bed = await startBed({ pve: { nodes: 1, timings: { cloneLinked: 20_000 } }, env: { FLEET_NODE_SLOTS: "1" } });
  const { fleet, redis, keys } = bed;
  const { sandboxId } = await provisionOne(fleet);
  const holder = await fleet.provision({ template: "cmux-base" });
  await until(
    () => bed.pve.tasks().find(({ type, endedAt }) => type === "vzclone" && endedAt === undefined),
    "a clone",
  );
  const queues = createQueues(redis, keys.prefix);
  const queue = queues.get(nodeQueue("pve1"));
  await queue.obliterate({ force: true });
  await queue.setGlobalConcurrency(1);
  // The only one that may run now, and the holder's new job comes behind it.
  const waiter = await fleet.destroy({ sandboxId });
  const isInLine = async () => (await redis.zscore(keys.slotQueue(slotOf.node("pve1")), waiter.id)) !== null;
  await until(isInLine, "the destroy in line");
  expect(await redis.hkeys(keys.slot(slotOf.node("pve1")))).toEqual([holder.id]);
  await Promise.all([holder.result({ timeoutMs: 60_000 }), waiter.result({ timeoutMs: 60_000 })]);
  // To let somebody else go first is no crash.
  expect(await redis.hget(keys.operation(waiter.id), "claims")).toBe("1");
  await queues.close();
  await bed.close();
});

test("a dead worker's task keeps its slot until it has ended, and it is given back with its operation", async () => {
  const templates = [{ name: "cmux-base" }, { name: "deaf", guest: { ignoresShutdown: true } }];
  const bed = await startBed({ workers: "none", pve: { nodes: 1, templates }, env: { FLEET_NODE_SLOTS: "1" } });
  const { fleet, redis, keys, pve } = bed;
  const node = keys.slot(slotOf.node("pve1"));
  const dying = await bed.startProcess();
  const deaf = await provisionOne(fleet, { template: "deaf" });
  const { sandboxId } = await provisionOne(fleet);
  const holder = await fleet.power({ sandboxId: deaf.sandboxId, action: "shutdown", graceSec: GRACE_SEC });
  const shutdown = await until(() => pve.tasks().find(({ type }) => type === "vzshutdown"), "the shutdown");
  await dying.end("SIGKILL");
  await bed.startWorkers();
  // What holds now is the slot alone: anybody can delete BullMQ's own limit.
  const queues = createQueues(redis, keys.prefix);
  await queues.get(nodeQueue("pve1")).removeGlobalConcurrency();
  await queues.close();
  const waiter = await fleet.destroy({ sandboxId });
  const taskOf = () => pve.tasks().find(({ upid }) => upid === shutdown.upid);
  await until(async () => {
    const holders = await redis.hkeys(node);
    if (taskOf()?.endedAt !== undefined) return true;
    expect(holders).toEqual([holder.id]);
    return false;
  }, "the task's end");
  await Promise.all([holder.result({ timeoutMs: 60_000 }), waiter.result({ timeoutMs: 60_000 })]);
  expect(mostAtOnce(pve.tasks())).toBe(1);
  const destroy = pve.tasks().find(({ type }) => type === "vzdestroy");
  const waitedMs = (destroy?.startedAt ?? Number.POSITIVE_INFINITY) - (taskOf()?.endedAt ?? 0);
  console.log(
    `the task ran ${Math.round((taskOf()?.endedAt ?? 0) - shutdown.startedAt)} ms; its slot was taken ${Math.round(waitedMs)} ms later`,
  );
  expect(waitedMs).toBeLessThan(1_000);
  expect(await redis.hlen(node)).toBe(0);
  await bed.close();
});
