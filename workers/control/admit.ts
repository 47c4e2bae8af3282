/** Operations that wait for a quota go when there is room: a minute has passed, or a limit was raised. */
import type { WorkerContext } from "../context.ts";
import { addReleased } from "../run/add-jobs.ts";

export async function admitWaiting(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const { quotas } = context;
  for (const team of await quotas.waitingTeams()) {
    // As many a step as Redis does at once.
    for (let more = true; more; ) {
      signal.throwIfAborted();
      const { admitted, ready } = await quotas.admit(team);
      await addReleased(context, ready);
      more = admitted > 0;
    }
  }
}
