/** Sandboxes whose time is up are destroyed: as an operation like any other, once. */
import { FleetError } from "../../shared/errors.ts";
import { newOperationId, SandboxId } from "../../shared/ids.ts";
import type { WorkerContext } from "../context.ts";
import { addJob } from "../run/process-operation.ts";

export async function expireSandboxes(context: WorkerContext): Promise<void> {
  const { redis, keys, store } = context;
  const due = await redis.zrangebyscore(keys.expiries, "-inf", Date.now(), "LIMIT", 0, 200);
  for (const id of due) {
    const sandbox = await store.loadSandbox(SandboxId.parse(id));
    if (sandbox && sandbox.endedAt === undefined) {
      const input = { sandboxId: sandbox.id };
      try {
        const accepted = await store.accept({
          id: newOperationId(),
          kind: "destroy",
          sandbox: sandbox.id,
          team: sandbox.team,
          scope: undefined,
          input,
          idempotencyKey: `ttl ${sandbox.id} ${sandbox.expiresAt}`,
          batch: false,
          newSandbox: undefined,
        });
        const operation = await store.load(accepted.id);
        if (operation && !accepted.parked && !accepted.existing) await addJob(context, operation);
        context.log.info({ sandbox: sandbox.id, operation: accepted.id }, "sandbox's time is up");
      } catch (error) {
        if (!(error instanceof FleetError) || error.code !== "sandbox_not_found") throw error;
      }
    }
    // Only now: a crash before it finds the same sandbox again, and the key keeps it from being asked twice.
    await redis.zrem(keys.expiries, id);
  }
}
