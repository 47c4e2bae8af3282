/** The placer: gives the operations of `place` a node, one at a time, in their order, only when a slot is free. */

import { FleetError, type FleetErrorCode, isAboutAccess } from "../../shared/errors.ts";
import { SnapshotId } from "../../shared/ids.ts";
import { checkRanges } from "../../shared/jobs/check-ranges.ts";
import { chooseNode, type Placement, type PlacementRequest, withDefaults } from "../../shared/placement/choose-node.ts";
import { type Reservation, reserve, unreserve } from "../../shared/placement/reservation.ts";
import { nodeQueue, PLACE } from "../../shared/queues.ts";
import { Reroute } from "../handlers/handler.ts";
import { NotYet } from "../run/not-yet.ts";
import type { Run } from "../run/run.ts";
import { mayHaveCloned } from "../sandbox/look.ts";
import type { Watch } from "../wake.ts";
import { asideMs } from "./aside.ts";
import { toLimits } from "./limits.ts";
import { factsOf, forgetFacts } from "./node-facts.ts";
import { teamInventory } from "./team-inventory.ts";
import { wantReplica } from "./want-replica.ts";

/** How long the placer sleeps when nothing wakes it. */
const POLL_MS = 200;
/** What finds too little room gets this much of the line in each round, so that smaller ones don't take every bit that is freed. */
const PATIENCE = { heldMs: 2_000, roundMs: 10_000 };
/** How long the placer waits for a newer reading of the cluster, and an operation for the next try to get one. */
const READING = { patienceMs: 1_000, againMs: 500 };
/** Field of the operation's hash: how often it stepped aside since it was last placed. */
const ASIDE = "aside";

/** Throws `Reroute` to the node's queue, `NotYet` when there is none yet, or what will not heal. */
export async function place(run: Run<"provision">): Promise<never> {
  // Its container is there already: Redis forgot that it had been placed, and the container was found by its stamp.
  if (run.sandbox.node !== undefined && mayHaveCloned(run))
    throw new Reroute(nodeQueue(run.sandbox.node), { leavesLine: true });
  using freed = run.context.wake.watch(["left", "abort", "node"]);
  // Placed now they would fail one after another, the whole line of them.
  const trouble = run.context.inventory.trouble();
  if (trouble && isAboutAccess(trouble)) return await wait(run, { wait: "line", reason: trouble.message }, freed);
  const request = await toRequest(run);
  const placement = await choose(run, request);
  if ("wait" in placement) {
    if (placement.wait !== "line") await wantReplica(run, request);
    return await wait(run, placement, freed);
  }
  const { node } = placement;
  const { keys, inventory } = run.context;
  // What it reserved before it came back here was taken back with that, unless Redis has forgotten that it was.
  const elsewhere = run.operation.seq === 0 ? [] : inventory.current().nodes.filter(({ name }) => name !== node);
  throw new Reroute(nodeQueue(node), {
    leavesLine: true,
    sandbox: { node, state: "placing" },
    operation: { waitingFor: null },
    also: [
      ["HDEL", keys.operation(run.id), ASIDE],
      ...elsewhere.flatMap(({ name }) => unreserve(keys, name, run.sandbox.id)),
      ...reserve(keys, node, run.sandbox.id, toReservation(placement, request)),
    ],
  });
}

/** Only where nobody could be placed is the line held without limit: what fits nowhere now must not stop the others. */
async function wait(
  run: Run<"provision">,
  placement: Extract<Placement, { wait: string }>,
  freed: Watch,
): Promise<never> {
  if (run.operation.waitingFor !== placement.reason) await run.write({ operation: { waitingFor: placement.reason } });
  const holds =
    placement.wait === "line" ||
    (placement.wait === "room" && run.sandbox.pool === undefined && (await hasPatience(run)));
  if (!holds) return stepAside(run);
  await freed.next({ timeoutMs: POLL_MS, signal: run.signal });
  run.check();
  forgetFacts(run.context);
  throw new NotYet(0, "no node yet");
}

/** Whether it may hold the line for room: one operation a round, for a part of the round. */
async function hasPatience(run: Run<"provision">): Promise<boolean> {
  const { redis, keys } = run.context;
  const key = `${keys.prefix}:place-patience`;
  if ((await redis.set(key, run.id, "PX", PATIENCE.roundMs, "NX")) === "OK") return true;
  const [holder, leftMs] = await Promise.all([redis.get(key), redis.pttl(key)]);
  return holder === run.id && leftMs > PATIENCE.roundMs - PATIENCE.heldMs;
}

async function stepAside(run: Run<"provision">): Promise<never> {
  const { redis, keys, queues } = run.context;
  const key = keys.operation(run.id);
  const [before, crowd] = await Promise.all([redis.hget(key, ASIDE), queues.get(PLACE).getDelayedCount()]);
  const times = Number(before ?? 0);
  await run.write({ also: [["HSET", key, ASIDE, times + 1]] });
  throw new NotYet(asideMs(times, crowd), "no node yet");
}

function toReservation(
  { demand, storage }: Extract<Placement, { node: string }>,
  { group }: PlacementRequest,
): Reservation {
  const { memoryMib, disks, copiedGib: gib } = demand;
  return {
    memoryMib,
    disks,
    ...(gib > 0 ? { copy: { storage, gib } } : {}),
    ...(group === undefined ? {} : { group }),
  };
}

async function choose(run: Run<"provision">, request: PlacementRequest): Promise<Placement> {
  try {
    return await decideOn(run, request);
  } catch (error) {
    if (!(error instanceof FleetError) || !OF_THE_CLUSTER.has(error.code)) throw error;
    await readAgain(run); // what is missing may be younger than what we know
    return decideOn(run, request);
  }
}

/** Refusals that another state of the cluster might take back. */
const OF_THE_CLUSTER: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  "template_not_found",
  "privileged_template",
  "linked_clone_unsupported",
  "storage_not_found",
  "forbidden",
  "invalid_input",
]);

/** A cluster that can't be read just now is weather: it must not fail the operation, nor hold up the line. */
async function readAgain(run: Run<"provision">): Promise<void> {
  try {
    await run.context.inventory.refresh(AbortSignal.any([run.signal, AbortSignal.timeout(READING.patienceMs)]));
  } catch (error) {
    run.check();
    run.log.info({ code: error instanceof FleetError ? error.code : "timeout" }, "could not read the cluster yet");
    await run.write({ operation: { waitingFor: "the cluster can't be read just now" } });
    throw new NotYet(READING.againMs, "no node yet");
  }
}

async function toRequest(run: Run<"provision">): Promise<PlacementRequest> {
  const { context } = run;
  const input = withDefaults(run.input, context.config);
  const wanted = SnapshotId.safeParse(input.template);
  const snapshot = wanted.success ? await context.store.loadSnapshot(wanted.data) : null;
  if (wanted.success && (!snapshot || snapshot.team !== run.operation.team)) {
    throw new FleetError("snapshot_not_found", `there is no snapshot ${wanted.data}`, {
      facts: { snapshot: wanted.data },
    });
  }
  const { avoid } = run.operation;
  const group = groupOf(run);
  return { input, snapshot, group, avoid: avoid !== undefined && avoid.until > Date.now() ? avoid.node : undefined };
}

/** Sandboxes of a team that keep away from each other. Throws `invalid_input` when nothing says which those are. */
function groupOf({ input, operation: { team, batch } }: Run<"provision">): string | undefined {
  if (input.antiAffinity === undefined) return undefined;
  const { group } = input.antiAffinity;
  if (group !== undefined) return `${team}/${group}`;
  if (batch !== undefined) return `${team}/batch/${batch}`;
  throw new FleetError("invalid_input", "antiAffinity.group: is needed for a sandbox that is of no batch", {
    facts: { fields: ["antiAffinity.group"] },
  });
}

async function decideOn(run: Run<"provision">, request: PlacementRequest): Promise<Placement> {
  const { context } = run;
  const limits = toLimits(context.config);
  const [inventory, young] = await Promise.all([teamInventory(run), factsOf(context, "young")]);
  checkRanges(request.input, inventory.nodes);
  const placement = chooseNode(request, inventory, young.facts, limits);
  // Somebody may have been placed since: a slot is given on what is true now only.
  if ("wait" in placement || young.now) return placement;
  const { facts } = await factsOf(context, "now");
  return chooseNode(request, inventory, facts, limits);
}
