/** A producer process: sends a batch of provisions, goes on with it through outages, and prints how each item ended. */
import { setTimeout as pause } from "node:timers/promises";
import { type Batch, type BatchJob, createFleet } from "../../../producers/index.ts";
import { FleetError } from "../../../shared/errors.ts";

/** What it prints. */
export interface BatchTold {
  counts: { total: number; succeeded: number };
  made: { index: number; sandboxId: string }[];
  failed: string[];
}

const [redis = "", prefix = "", id = "", count = "0"] = process.argv.slice(2);

/** Slow enough to be killed in the middle. */
async function* jobs(): AsyncGenerator<BatchJob> {
  for (let at = 0; at < Number(count); at++) {
    if (at % 10 === 0) await pause(50);
    yield { kind: "provision", input: { template: "cmux-base" } };
  }
}

await using fleet = createFleet({ redis, prefix });

async function submit(): Promise<Batch> {
  while (true) {
    try {
      return await fleet.batch(jobs(), { id });
    } catch (error) {
      if (!(error instanceof FleetError) || error.code !== "redis_unavailable") throw error;
      await pause(100);
    }
  }
}

const batch = await submit();
const told: BatchTold = { counts: (await batch.result()).counts, made: [], failed: [] };
for await (const one of batch.results()) {
  if (one.ok) told.made.push({ index: one.index, sandboxId: one.sandboxId });
  else told.failed.push(one.error.message);
}
process.stdout.write(JSON.stringify(told));
