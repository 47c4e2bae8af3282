import { FleetError } from "../../shared/errors.ts";
import type { SandboxId } from "../../shared/ids.ts";
import type { ItemOutcome } from "../batch.ts";
import type { InstanceContext } from "./instance.ts";

/** So many copies of a sandbox as its disk is now: all, or none of them stays. */
export async function branchSandbox(
  { fleet, done }: InstanceContext,
  sandboxId: SandboxId,
  count: number,
): Promise<SandboxId[]> {
  const batch = await fleet.branch({ sandboxId, count }, { policy: "undo", onQuota: "refuse" });
  await done(Promise.resolve(batch));
  const outcomes: ItemOutcome[] = [];
  for await (const outcome of batch.results()) outcomes.push(outcome);
  const failed = outcomes.flatMap((one) => (one.ok ? [] : [one.error]));
  // Why it failed, rather than what that meant for the others.
  const why = failed.find(({ code }) => code !== "canceled") ?? failed[0];
  if (why) throw why;
  const made = outcomes.sort((a, b) => a.index - b.index).flatMap((one) => (one.ok ? [one.sandboxId] : []));
  if (made.length === count) return made;
  throw new FleetError("canceled", `branch ${batch.id} was canceled`, { facts: { batch: batch.id } });
}
