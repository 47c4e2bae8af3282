/** A batch whose producer, worker and Redis are killed in turn while it runs: it is whole in the end, and nothing is there twice. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, startBed, until } from "../fleet/harness.ts";
import type { BatchTold } from "./batch-producer.ts";

const PRODUCER = fileURLToPath(new URL("./batch-producer.ts", import.meta.url));
const [ID, COUNT] = ["killed", 300];

let bed: Bed;
beforeAll(async () => {
  const nodes = ["pve1", "pve2", "pve3"].map((name) => ({ name, memoryMib: 1_048_576, parallel: 8 }));
  bed = await startBed({
    pve: { nodes },
    redis: { engine: "process", appendfsync: "always" },
    env: { FLEET_NODE_SLOTS: "8" },
    workers: "none",
  });
});
afterAll(() => bed.close());

function startProducer(): ChildProcess {
  const args = [PRODUCER, bed.redisServer.urlFor("producer"), bed.env["FLEET_PREFIX"] ?? "", ID, String(COUNT)];
  return spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
}

async function killed(child: ChildProcess): Promise<void> {
  const gone = once(child, "exit");
  child.kill("SIGKILL");
  await gone;
}

/** Resolves once so many have come so far. */
const reached = (what: "total" | "succeeded", count: number) =>
  until(
    async () => {
      const counts = await (await bed.fleet.batches.get(ID)).counts().catch(() => undefined);
      return counts !== undefined && counts[what] >= count;
    },
    `${count} ${what}`,
    60_000,
  );

test("producer, worker and Redis killed in turn: the counts add up, nothing is there twice", async () => {
  const doomed = await bed.startProcess();
  const first = startProducer();
  await until(async () => (await bed.fleet.batches.list()).length === 1, "the batch");
  await reached("total", 80);
  await killed(first);
  const { total } = await (await bed.fleet.batches.get(ID)).counts();
  expect(total).toBeLessThan(COUNT);

  const second = startProducer();
  const printed = second.stdout && text(second.stdout);
  await reached("succeeded", 60);
  await doomed.end("SIGKILL");
  await bed.startProcess();
  await reached("succeeded", 130);
  await bed.redisServer.kill("SIGKILL");
  await bed.redisServer.restart();

  const told: BatchTold = JSON.parse((await printed) ?? "");
  expect(told.failed).toEqual([]);
  expect(told.counts).toMatchObject({ total: COUNT, queued: 0, running: 0, succeeded: COUNT });
  const indexes = told.made.map(({ index }) => index).sort((a, b) => a - b);
  expect(indexes).toEqual(Array.from({ length: COUNT }, (_, at) => at));
  const made = told.made.map(({ sandboxId }) => sandboxId).sort();
  // The stamp of each container says whose it is.
  const stamps = bed.pve
    .containers()
    .flatMap(({ config }) => /sbx_\w{16}/.exec(config["description"] ?? "")?.[0] ?? []);
  expect(stamps.sort()).toEqual(made);
  expect(new Set(made).size).toBe(COUNT);
  const ends = new Map<string, number>();
  for await (const { operation } of bed.fleet.events({ after: "0", follow: false, types: ["operation.succeeded"] }))
    ends.set(operation, (ends.get(operation) ?? 0) + 1);
  expect(ends.size).toBe(COUNT);
  expect(Math.max(...ends.values())).toBe(1);
}, 120_000);
