/** Workers are replaced one after the other while producers go on: nothing is lost, and nothing fails because of it. */
import { expect, onTestFinished, test } from "vitest";
import { isEnded } from "../../shared/state/records.ts";
import { until } from "../integration/fleet/until.ts";
import { startWorkerProcess, type WorkerProcess } from "../integration/fleet/worker-process.ts";
import {
  doubledNow,
  findDrift,
  findLeaked,
  findLimitViolations,
  findLost,
  findStuckLeases,
  loadRecords,
} from "./compare.ts";
import { Ledger, produceLoad } from "./load.ts";
import { startWorld, TEMPLATE } from "./world.ts";

const LOAD_MS = 60_000;
const WORKERS = 3;
const PRODUCERS = 8;

test("a minute of provisions, commands, exposes, destroys and batches while workers are replaced without a break: 0 lost, 0 failed", async () => {
  await using world = await startWorld({ seed: 1, workers: 0, ssh: false, logs: undefined });
  const start = () => startWorkerProcess({ ...world.env, LOG_LEVEL: "info" });
  const workers: WorkerProcess[] = await Promise.all(Array.from({ length: WORKERS }, start));
  onTestFinished(async () => void (await Promise.all(workers.map((worker) => worker[Symbol.asyncDispose]()))));
  const ledger = new Ledger();
  let over = false;
  const load = produceLoad(world.teams, ledger, { template: TEMPLATE, producers: PRODUCERS, isOver: () => over });
  const end = performance.now() + LOAD_MS;
  const codes: (number | null)[] = [];
  let rolled = 0;
  while (performance.now() < end) {
    const old = workers[rolled % WORKERS];
    codes.push((await old?.end("SIGTERM")) ?? null);
    workers[rolled % WORKERS] = await start();
    rolled++;
  }
  over = true;
  await load;
  await until(() => world.pve.tasks().every(({ endedAt }) => endedAt !== undefined), "quiet at PVE", 30_000);
  const records = await loadRecords(world, ledger.accepted);
  const ended = [...records.operations.values()];
  console.info(`${ended.length} operations, ${rolled} workers replaced`);
  expect(ledger.failures).toEqual([]);
  expect({
    lost: findLost(new Set(ledger.accepted), records),
    notWell: ended.filter(({ status }) => !isEnded(status) || status !== "succeeded").map(({ id }) => id),
    doubled: doubledNow(world.pve),
    leaked: findLeaked(world.pve, records),
    stuckLeases: await findStuckLeases(world, records),
    limitViolations: findLimitViolations(world.pve),
    odd: findDrift(world.pve, records),
    codes: codes.filter((code) => code !== 0),
  }).toEqual({
    lost: [],
    notWell: [],
    doubled: [],
    leaked: [],
    stuckLeases: [],
    limitViolations: [],
    odd: [],
    codes: [],
  });
  // It was load, and it was a roll.
  expect(ended.length).toBeGreaterThan(300);
  expect(rolled).toBeGreaterThan(WORKERS);
});
