/** Workers are replaced one after the other while producers go on: nothing is lost, and nothing fails because of it. */
import { expect, onTestFinished, test } from "vitest";
import type { AnyHandle, Fleet, JobInput } from "../../producers/index.ts";
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
import { startWorld, TEMPLATE } from "./world.ts";

const LOAD_MS = 60_000;
const WORKERS = 3;
const PRODUCERS = 8;
const PROVISION: JobInput<"provision"> = { template: TEMPLATE };

/** Everything that was asked for, with what became of it. */
class Ledger {
  readonly accepted: string[] = [];
  readonly failures: string[] = [];

  /** Undefined where it failed. */
  async take<H extends AnyHandle>(asked: Promise<H>) {
    const handle = await asked;
    this.accepted.push(handle.id);
    try {
      return (await handle.result()) as Awaited<ReturnType<H["result"]>>; // the handle's own result
    } catch (error) {
      this.failures.push(`${handle.kind} ${handle.id}: ${String(error)}`);
      return undefined;
    }
  }
}

async function produce(fleet: Fleet, ledger: Ledger, isOver: () => boolean): Promise<void> {
  while (!isOver()) {
    const sandbox = await ledger.take(fleet.provision(PROVISION));
    if (sandbox === undefined) continue;
    const { sandboxId } = sandbox;
    await Promise.all([
      ledger.take(fleet.expose({ sandboxId, name: "web" as never, port: 8_080 })), // branded by its schema
      ...["0", "0.3", "1"].map((seconds) => ledger.take(fleet.exec({ sandboxId, command: `sleep ${seconds}` }))),
    ]);
    await ledger.take(fleet.destroy({ sandboxId }));
  }
}

async function produceBatches(fleet: Fleet, ledger: Ledger, isOver: () => boolean): Promise<void> {
  while (!isOver()) {
    const made: JobInput<"destroy">[] = [];
    const provisions = await fleet.batch({ ...PROVISION, priority: "batch", count: 10 });
    for await (const item of provisions.results()) {
      if (item.ok) made.push({ sandboxId: item.sandboxId });
      else ledger.failures.push(`item ${item.index}: ${item.error.message}`);
    }
    await Promise.all(made.map((input) => ledger.take(fleet.destroy(input))));
  }
}

test("a minute of provisions, commands, exposes, destroys and batches while workers are replaced without a break: 0 lost, 0 failed", async () => {
  await using world = await startWorld({ seed: 1, workers: 0, ssh: false, logs: undefined });
  const start = () => startWorkerProcess({ ...world.env, LOG_LEVEL: "info" });
  const workers: WorkerProcess[] = await Promise.all(Array.from({ length: WORKERS }, start));
  onTestFinished(async () => void (await Promise.all(workers.map((worker) => worker[Symbol.asyncDispose]()))));
  const ledger = new Ledger();
  let over = false;
  const isOver = () => over;
  const [first, ...others] = world.teams;
  const producers = [
    ...Array.from({ length: PRODUCERS }, (_, at) =>
      produce(world.teams[at % world.teams.length] ?? first, ledger, isOver),
    ),
    ...others.map((fleet) => produceBatches(fleet, ledger, isOver)),
  ];
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
  await Promise.all(producers);
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
