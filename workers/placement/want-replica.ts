/** A replica by demand: for a provision whose template is only on nodes that have no room for it, while others have. */
import { newOperationId, newSandboxId } from "../../shared/ids.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import type { PlacementRequest } from "../../shared/placement/choose-node.ts";
import { addJob } from "../run/add-jobs.ts";
import type { Run } from "../run/run.ts";
import { toLimits } from "./limits.ts";
import { factsOf } from "./node-facts.ts";
import { wishReplica } from "./replica-site.ts";
import { teamInventory } from "./team-inventory.ts";

/** A provision waits this long before a replica is made for it: room comes and goes. */
const WAITED_MS = 3_000;
/** Of a template one at a time, and after one that failed none for so long. */
const AGAIN_MS = 600_000;

export async function wantReplica(run: Run<"provision">, request: PlacementRequest): Promise<void> {
  const { context, operation } = run;
  const { config, redis, keys, store, log } = context;
  const most = config.FLEET_DEMAND_REPLICAS;
  // What fills a pool can wait.
  if (most === 0 || run.sandbox.pool !== undefined || Date.now() - operation.acceptedAt < WAITED_MS) return;
  const [inventory, { facts }] = await Promise.all([teamInventory(run), factsOf(context, "young")]);
  const wish = wishReplica(request, inventory, facts, toLimits(config), most);
  if (wish === null) return;
  const { template, node } = wish;
  const id = newOperationId();
  // Whoever comes to here first: it is the operation that the key names, also where this process dies now.
  const lock = keys.replicaWish(template);
  if ((await redis.set(lock, id, "PX", AGAIN_MS, "NX")) === null) return;
  const { team } = operation;
  const accepted = await store.accept({
    id,
    kind: "replicate",
    sandbox: newSandboxId(),
    team,
    scope: undefined,
    input: parseInput("replicate", { template, node }),
    secrets: undefined,
    idempotencyKey: undefined,
    batch: true,
    onQuota: "ignore",
    newSandbox: { state: "placing", node, template: String(template), createdAt: Date.now() },
  });
  log.info({ ...wish, operation: accepted.id, for: operation.id }, "the placer asks for a replica");
  const replica = accepted.needsJob ? await store.load(accepted.id) : null;
  if (replica) await addJob(context, replica);
}
