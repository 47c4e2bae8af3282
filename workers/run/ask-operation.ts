import { newOperationId } from "../../shared/ids.ts";
import type { JobName } from "../../shared/jobs/index.ts";
import type { Accepted, AcceptRequest } from "../../shared/state/accept.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { addJob } from "./add-jobs.ts";

/** On the fleet's own account: it counts for no quota. The same key again is the same operation. */
interface Asked {
  sandbox: Pick<SandboxRecord, "id" | "team">;
  kind: JobName;
  input: AcceptRequest["input"];
  idempotencyKey: string;
}

/** Asks for an operation. Throws `sandbox_not_found` or `sandbox_gone`. */
export async function askOperation(
  context: WorkerContext,
  sandbox: Asked["sandbox"],
  what: Omit<Asked, "sandbox">,
): Promise<Accepted> {
  const accepted = await context.store.accept(toRequest({ sandbox, ...what }));
  const operation = accepted.needsJob ? await context.store.load(accepted.id) : null;
  if (operation) await addJob(context, operation);
  return accepted;
}

function toRequest({ sandbox, kind, input, idempotencyKey }: Asked): AcceptRequest {
  return {
    id: newOperationId(),
    kind,
    sandbox: sandbox.id,
    team: sandbox.team,
    scope: undefined,
    input,
    secrets: undefined,
    idempotencyKey,
    batch: false,
    onQuota: "ignore",
    newSandbox: undefined,
  };
}
