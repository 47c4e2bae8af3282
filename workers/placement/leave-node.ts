/** Provisions that wait for a node which has become none: back to placement, with nothing to undo. */
import { unreserve } from "../../shared/placement/reservation.ts";
import { PLACE } from "../../shared/queues.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { OperationRecord, SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { Reroute } from "../handlers/handler.ts";
import type { Run } from "../run/run.ts";
import { mayHaveCloned } from "../sandbox/look.ts";

/**
 * Throws `Reroute` to placement when the node is cordoned or its breaker open, and nothing was asked of it yet. What has
 * begun there stays: a cordon must not disturb it, and behind an open breaker a clone of unknown fate may be waiting.
 */
export async function leaveBadNode(run: Run<"provision">): Promise<void> {
  const { context, sandbox } = run;
  const { node } = sandbox;
  if (node === undefined || sandbox.state !== "placing" || mayHaveCloned(run)) return;
  // What this process heard last costs nothing; it is read again before it counts, since placement reads it too.
  if (!context.nodes.obstacles().has(node)) return;
  const obstacle = (await context.nodes.readObstacles()).get(node);
  if (obstacle === undefined) return;
  await run.releaseSlots(() => false); // a run that died after it took them
  throw new Reroute(PLACE, leaveWrite(context, run.operation, sandbox, `${node}: ${obstacle}`));
}

/** Takes back what placement wrote. The claim that found this out is no crash. */
export function leaveWrite(
  { keys }: WorkerContext,
  { claims }: OperationRecord,
  { id, node }: SandboxRecord,
  waitingFor: string,
): Write {
  return {
    operation: { status: "queued", startedAt: null, step: null, waitingFor, claims: claims - 1 },
    sandbox: { node: null },
    also: node === undefined ? [] : unreserve(keys, node, id),
  };
}
