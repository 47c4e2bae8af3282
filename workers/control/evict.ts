/**
 * Provisions that wait in the queue of a node that has become none. Their own runs would leave it, but behind runs that
 * hold on to a dead node none of them ever comes up.
 */
import { newFence, type OperationId } from "../../shared/ids.ts";
import { nodeQueue, PLACE } from "../../shared/queues.ts";
import type { WorkerContext } from "../context.ts";
import { leaveWrite } from "../placement/leave-node.ts";
import { addJob } from "../run/add-jobs.ts";
import { forEachRecord } from "./for-each-record.ts";

export async function evictFromBadNodes(context: WorkerContext): Promise<void> {
  for (const [node, obstacle] of context.nodes.obstacles()) {
    const queue = context.queues.get(nodeQueue(node));
    const jobs = await queue.getJobs(["waiting", "prioritized", "delayed"]);
    const waiting = jobs.flatMap((job) => (job.name === "provision" ? [{ id: job.data.operation, job }] : []));
    await forEachRecord(context, waiting, async ({ id, job }) => {
      const before = await context.store.load(id);
      if (before === null || before.job !== job.id || before.step !== undefined || before.abort !== undefined) return;
      // Removal fails for a job that has just been taken: then its run leaves the node.
      const removed = await job.remove().then(
        () => true,
        () => false,
      );
      if (removed) await replaceWithoutRun(context, before.id, before.job, `${node}: ${obstacle}`);
    });
  }
}

/** After a crash in here the sweeper finds the operation without a job and adds it where it was. */
async function replaceWithoutRun(
  context: WorkerContext,
  id: OperationId,
  job: string,
  waitingFor: string,
): Promise<void> {
  const claim = await context.store.claim(id, newFence());
  // The sweeper may have added the job again meanwhile, and its run have gone on.
  if (claim.outcome !== "claimed" || claim.operation.job !== job || claim.sandbox.state !== "placing") return;
  const { operation, sandbox } = claim;
  const seq = operation.seq + 1;
  const write = leaveWrite(context, operation, sandbox, waitingFor);
  const moved = { queue: PLACE, seq, job: `${id}.${seq}` };
  await context.store.write(claim.writer, { ...write, operation: { ...write.operation, ...moved } });
  await addJob(context, { ...operation, ...moved });
  context.log.info({ operation: id, node: sandbox.node }, "operation leaves a node that takes nothing new");
}
