/** Workers of two versions at once, as while they are rolled: an older one leaves what it does not know to a newer one. */
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Handle, JobName } from "../../../producers/index.ts";
import { execQueue } from "../../../shared/queues.ts";
import type { FleetWorkers } from "../../../workers/fleet.ts";
import { type Bed, provisionOne, run, startBed, until } from "./harness.ts";

const NEXT_VERSION = fileURLToPath(new URL("next-version.ts", import.meta.url));
const PATIENCE = { timeoutMs: 20_000 };

let bed: Bed;
let old: FleetWorkers;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 }, workers: "none" });
});
afterAll(() => bed.close());

/** The old worker has had it, and nothing was done to it: it is no run that failed or died. */
async function isLeft(handle: Handle<JobName>): Promise<void> {
  const fields = () => bed.redis.hmget(bed.keys.operation(handle.id), "waitingFor", "claims", "attempts");
  await until(async () => (await fields())[0] !== null, `${handle.kind} to be left`);
  expect(await fields()).toEqual(["a newer worker", "0", "0"]);
}

test("a provision of a version that it does not know waits for a newer worker, which does it", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  await bed.redis.hset(bed.keys.operation(handle.id), "version", 2); // as a newer producer writes it
  old = await bed.startWorkers();
  await isLeft(handle);
  expect(bed.pve.containers().filter(({ template }) => !template)).toEqual([]);
  expect(await old.context.metrics.registry.metrics()).toMatch(/^fleet_left_to_newer_total [1-9]/m);
  const newer = await bed.startProcess({ NODE_OPTIONS: `--import ${NEXT_VERSION}` });
  const { sandboxId } = await handle.result(PATIENCE);
  // What the old one knows it does, too.
  await newer.end("SIGTERM");
  expect(await run(bed.fleet, "exec", { sandboxId, command: "echo hi" })).toMatchObject({ stdout: "hi\n" });
});

test.each([
  ["a kind", "operation", "kind"],
  ["a state of the sandbox", "sandbox", "state"],
] as const)("the same for %s that it does not know", async (_, record, field) => {
  const { sandboxId } = await provisionOne(bed.fleet);
  const queue = old.context.queues.get(execQueue("pve1"));
  await queue.pause();
  const handle = await bed.fleet.exec({ sandboxId, command: "echo hi" });
  const key = record === "sandbox" ? bed.keys.sandbox(sandboxId) : bed.keys.operation(handle.id);
  const known = (await bed.redis.hget(key, field)) ?? "";
  await bed.redis.hset(key, field, "levitate");
  await queue.resume();
  await isLeft(handle);
  await bed.redis.hset(key, field, known);
  expect(await handle.result(PATIENCE)).toMatchObject({ stdout: "hi\n" });
});
