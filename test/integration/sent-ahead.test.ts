/** A claim may record a command as sent, which saves its run a step; one that then does not send it takes that back. */
import type { Job } from "bullmq";
import { afterAll, beforeAll, expect, test } from "vitest";
import { FleetError } from "../../shared/errors.ts";
import { newFence, type OperationId } from "../../shared/ids.ts";
import type { JobInput } from "../../shared/jobs/index.ts";
import type { JobData } from "../../shared/queues.ts";
import { toClaim } from "../../shared/state/operations.ts";
import { takeJob } from "../../shared/state/take.ts";
import type { WorkerContext } from "../../workers/context.ts";
import type { Handler } from "../../workers/handlers/handler.ts";
import { createLogger } from "../../workers/log.ts";
import { createMetrics } from "../../workers/metrics.ts";
import { NotYet } from "../../workers/run/not-yet.ts";
import { processOperation } from "../../workers/run/process-operation.ts";
import { type RedisServer, startRedis } from "../redis.ts";
import { createRig, type Rig } from "./producers/rig.ts";

let server: RedisServer;
let rig: Rig;
let sandboxId: string;
beforeAll(async () => {
  server = await startRedis();
  rig = createRig(server);
  sandboxId = await rig.running();
  await rig.redis.hset(rig.keys.sandbox(sandboxId), "address", "10.0.0.5");
});
afterAll(async () => {
  await rig[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const QUEUE = "exec-pve1";
const lockOf = (id: string) => `${rig.prefix}:${QUEUE}:${id}:lock`;

async function ask(input: Partial<JobInput<"exec">> = {}): Promise<OperationId> {
  const { id } = await rig.fleet.exec({ sandboxId, command: "true", ...input });
  await rig.redis.set(lockOf(id), "mine");
  return id;
}

async function claim(id: OperationId, fence = newFence()) {
  const claimed = await rig.store.claim(id, fence, { job: id, lockKey: lockOf(id), lockToken: "mine" });
  if (claimed.outcome !== "claimed") throw new Error(claimed.outcome);
  return { sent: claimed.sent, step: claimed.operation.step?.name };
}
const recorded = async (id: OperationId) => (await rig.store.load(id))?.step?.name;

test("the claim of a command with nothing left to do before it; again after a lost reply, but for no later run", async () => {
  const id = await ask({ env: { A: "1" } });
  const fence = newFence();
  expect(await claim(id, fence)).toEqual({ sent: true, step: undefined });
  expect(await recorded(id)).toBe("sent");
  expect(await claim(id, fence)).toEqual({ sent: true, step: undefined });
  expect(await claim(id)).toEqual({ sent: false, step: "sent" });
});

test("not where it may be run again, must be written to files first, or its sandbox is not up, elsewhere or unknown", async () => {
  for (const input of [{ idempotent: true }, { command: "x".repeat(30_000) }, { stdin: "x".repeat(30_000) }]) {
    const id = await ask(input);
    expect(await claim(id)).toEqual({ sent: false, step: undefined });
    expect(await recorded(id)).toBeUndefined();
  }
  for (const [field, value, back] of [
    ["state", "stopped", "running"],
    ["node", "pve2", "pve1"],
    ["address", undefined, "10.0.0.5"],
  ] as const) {
    const id = await ask();
    const key = rig.keys.sandbox(sandboxId);
    await (value === undefined ? rig.redis.hdel(key, field) : rig.redis.hset(key, field, value));
    expect(await claim(id)).toEqual({ sent: false, step: undefined });
    await rig.redis.hset(key, field, back);
  }
  const aborted = await ask();
  await rig.store.abort(aborted, { code: "canceled", message: "canceled", facts: {} }, undefined);
  expect(await claim(aborted)).toEqual({ sent: false, step: undefined });
});

const take = (token: string, fence = newFence()) => takeJob(rig.redis, rig.keys, { queue: QUEUE, token, fence });
const marked = () => rig.redis.exists(`${rig.prefix}:${QUEUE}:marker`);

test("a job is taken with its operation claimed, and the same one again after a lost reply", async () => {
  await rig.redis.del(`${rig.prefix}:${QUEUE}:wait`);
  const [first, second] = [await ask(), await ask()];
  const fence = newFence();
  const taken = await take("worker:1", fence);
  expect([taken.id, taken.isLast, await marked()]).toEqual([first, false, 1]);
  const claimed = toClaim(fence, taken.claimed?.reply ?? []);
  expect(claimed).toMatchObject({
    outcome: "claimed",
    sent: true,
    operation: { id: first, fence },
  });
  expect(await rig.redis.get(lockOf(first))).toBe("worker:1");

  const again = await take("worker:1", fence);
  expect([again.id, toClaim(fence, again.claimed?.reply ?? [])]).toMatchObject([first, { sent: true }]);

  // The lock has another holder by now, so what was taken then is nobody's business any more.
  await rig.redis.set(lockOf(first), "another");
  expect(await take("worker:1")).toMatchObject({ id: second, isLast: true });
  expect(await marked()).toBe(0); // nobody is woken for a job that is not there
  expect(await take("worker:2")).toMatchObject({ id: undefined, claimed: undefined });
});

test("a job whose operation can't be claimed is taken all the same, and left to its run", async () => {
  const id = await ask();
  await rig.redis.hset(rig.keys.operation(id), "version", "none");
  expect(await take("worker:3")).toMatchObject({ id, claimed: undefined });
});

/** One run of the operation, with this handler. */
async function runOnce(id: OperationId, run: Handler<"exec">["run"]): Promise<unknown> {
  const { redis, keys, store, queues } = rig;
  const slots = { held: async () => [], renew: async () => [] };
  const config = { FLEET_PREFIX: rig.prefix };
  const parts = { redis, keys, store, queues, slots, config, metrics: createMetrics(), log: createLogger("silent") };
  const context = parts as unknown as WorkerContext; // what a run without PVE needs
  const carrier = {
    id,
    queueName: QUEUE,
    data: { operation: id },
    moveToWait: async () => {},
    moveToDelayed: async () => {},
  };
  const handlerOf = () => ({ run }) as unknown as Handler<never>; // of the one kind that is asked for here
  return processOperation(context, carrier as unknown as Job<JobData>, "mine", { handlerOf, live: new Set() }).catch(
    (error: unknown) => error,
  );
}

test.for([
  ["is told to stop", new FleetError("shutting_down", "stop")],
  ["fails and is tried again", new FleetError("execd_unreachable", "no way")],
  ["waits", new NotYet(10, "its turn")],
] as const)("a run that %s before it sends takes it back; one that had sent does not", async ([, error]) => {
  const early = await ask();
  let atRun: string | undefined;
  await runOnce(early, async () => {
    atRun = await recorded(early);
    throw error;
  });
  expect([atRun, await recorded(early)]).toEqual(["sent", undefined]);
  const late = await ask();
  let revision: number | undefined;
  await runOnce(late, async (run) => {
    revision = run.operation.revision;
    await run.begin("sent");
    expect((await rig.store.load(late))?.revision).toBe(revision); // no write of its own
    expect(run.operation.step?.name).toBe("sent");
    throw error;
  });
  expect(await recorded(late)).toBe("sent");
});
