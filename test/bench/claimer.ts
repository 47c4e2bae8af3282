/** One of several processes that claim members of one pool at once; prints which sandbox got which member. */
import { setTimeout as delay } from "node:timers/promises";
import { FleetError } from "../../producers/index.ts";
import { newFence, newOperationId, newSandboxId, TeamId } from "../../shared/ids.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import { closeRedis, connectRedis } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { createOperationStore } from "../../shared/state/operations.ts";
import { createPools } from "../../shared/state/pools.ts";

const LANES = 64;
const PATIENCE_MS = 120_000;
const [url = "", prefix = "", template = "", count = "0"] = process.argv.slice(2);
const redis = connectRedis(url);
const keys = createKeys(prefix);
const store = createOperationStore(redis, keys, { retentionSec: 600 });
const pools = createPools(redis, keys);
const input = parseInput("provision", { template });
const team = TeamId.parse("bench");
const claims: [sandbox: string, member: string][] = [];
let left = Number(count);
let refused = 0;

/** As a producer asks for it and a worker serves it. */
async function claimOne(): Promise<void> {
  const { id, sandbox } = await store.accept({
    id: newOperationId(),
    kind: "provision",
    sandbox: newSandboxId(),
    team,
    scope: undefined,
    input,
    secrets: undefined,
    idempotencyKey: undefined,
    batch: false,
    newSandbox: { template, state: "placing", createdAt: Date.now() },
  });
  const claimed = await store.claim(id, newFence());
  if (claimed.outcome !== "claimed") throw new Error(`${id} is ${claimed.outcome}`);
  while (true) {
    const taken = await pools.take(template, sandbox, { batch: false });
    if (taken === null) {
      // Those that are in other hands come back with the next probe; not when nobody probes any more.
      if (performance.now() > PATIENCE_MS) throw new Error("no member is left");
      await delay(20);
      continue;
    }
    // A probe that comes in between puts it back on the list, so that another gets it as well.
    if (left % 8 === 0) await pools.seen(template, [taken.member]);
    const write = { member: taken.member, sandbox: { state: "running" as const } };
    try {
      await store.end(claimed.writer, { status: "succeeded", result: null }, write);
      claims.push([sandbox, taken.member]);
      return;
    } catch (error) {
      if (!(error instanceof FleetError) || error.code !== "member_taken") throw error;
      refused += 1;
    }
  }
}

const lane = async () => {
  while (left-- > 0) await claimOne();
};
await Promise.all(Array.from({ length: LANES }, lane));
process.stdout.write(`${JSON.stringify({ claims: JSON.stringify(claims), refused: String(refused) })}\n`);
await closeRedis(redis);
