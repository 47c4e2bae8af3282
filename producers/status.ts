/** What of an operation is shown: everything but its input and its fleet's inner workings. */
import type { ErrorRecord } from "../shared/errors.ts";
import type { OperationId, SandboxId, TeamId } from "../shared/ids.ts";
import type { JobName } from "../shared/jobs/index.ts";
import type { OperationRecord, OperationStatus, SandboxRecord, SandboxState } from "../shared/state/records.ts";
import { toUnknown } from "./end-watch.ts";
import type { Parts } from "./parts.ts";

export interface OperationView {
  id: OperationId;
  kind: JobName;
  team: TeamId;
  status: OperationStatus;
  /** It was asked to undo and end. */
  aborting: boolean;
  /** Why it is not running yet. */
  waitingFor: string | undefined;
  /** What it does now, e.g. `clone`. */
  step: string | undefined;
  /** Runs that ended in an error. */
  attempts: number;
  /** The last error that was retried. */
  lastError: ErrorRecord | undefined;
  /** Why it failed or was canceled. */
  error: ErrorRecord | undefined;
  /** ms per step. */
  timings: Record<string, number>;
  /** ms since the epoch. */
  acceptedAt: number;
  startedAt: number | undefined;
  endedAt: number | undefined;
  /** The sandbox with what is known of it; its record goes some time after the sandbox. */
  sandbox: { id: SandboxId; state: SandboxState | undefined; node: string | undefined; vmid: number | undefined };
}

export async function loadStatus(parts: Parts, id: OperationId): Promise<OperationView> {
  const record = await loadOperation(parts, id);
  const sandbox = await parts.link.request(() => parts.store.loadSandbox(record.sandbox));
  return toOperationView(record, sandbox);
}

/** Throws `operation_unknown`, also for other teams' operations. */
export async function loadOperation(parts: Parts, id: string): Promise<OperationRecord> {
  const record = await parts.link.request(() => parts.store.load(id as OperationId)); // any text: at worst not found
  if (record === null || (parts.team !== undefined && record.team !== parts.team)) throw toUnknown(id);
  return record;
}

function toOperationView(record: OperationRecord, sandbox: SandboxRecord | null): OperationView {
  return {
    id: record.id,
    kind: record.kind,
    team: record.team,
    status: record.status,
    aborting: record.abort !== undefined && record.endedAt === undefined,
    waitingFor: record.waitingFor,
    step: record.step?.name,
    attempts: record.attempts,
    lastError: record.lastError,
    error: record.error,
    timings: record.timings,
    acceptedAt: record.acceptedAt,
    startedAt: record.startedAt,
    endedAt: record.endedAt,
    sandbox: { id: record.sandbox, state: sandbox?.state, node: sandbox?.node, vmid: sandbox?.vmid },
  };
}
