/** An operation keeps its slots when it loses its job: those who wait for them must not be in its way. */
import { expect, test } from "vitest";
import { createQueues, nodeQueue } from "../../../shared/queues.ts";
import { slotOf } from "../../../shared/state/slots.ts";
import { provisionOne, startBed, until } from "./harness.ts";

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
  await Promise.all([holder.result({ timeoutMs: 30_000 }), waiter.result({ timeoutMs: 30_000 })]);
  // To let somebody else go first is no crash.
  expect(await redis.hget(keys.operation(waiter.id), "claims")).toBe("1");
  await queues.close();
  await bed.close();
});
