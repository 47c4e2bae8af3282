/** Copies of a sandbox as it stands, as one batch. */
import { z } from "zod";
import { SandboxId } from "../shared/ids.ts";
import type { JobInput, JobOutput } from "../shared/jobs/index.ts";
import { parseOrRefuse } from "../shared/jobs/problems.ts";
import type { SandboxRecord } from "../shared/state/records.ts";
import type { Batch } from "./batch.ts";
import { type BatchOptions, type BeginBatch, checkBatchOptions } from "./batches.ts";
import type { JobMethods } from "./fleet.ts";
import type { Parts } from "./parts.ts";
import type { Sandboxes } from "./sandboxes.ts";

export interface BranchInput {
  sandboxId: string;
  /** 1 to 100. */
  count: number;
}

/**
 * So many sandboxes with the disk that this one has now, and with its resources, environment, metadata, services and TTL, or of
 * that as much as workers allow (FLEET_TTL_MAX_SECONDS). It runs on. They are made from a snapshot, which goes with the end of the
 * batch: linked where its storage lets such clones live without it, else as full copies. Resolves once the snapshot is taken and
 * all are accepted. Throws as `snapshot` and `batch` do.
 */
export type BranchSandbox = (input: BranchInput, options?: BatchOptions) => Promise<Batch>;

const Input = z.strictObject({
  sandboxId: SandboxId,
  count: z.int().min(1).max(100),
});

export function createBranch(
  parts: Parts,
  { sandboxes, methods, batch }: { sandboxes: Sandboxes; methods: Pick<JobMethods, "snapshot">; batch: BeginBatch },
): BranchSandbox {
  return async (input, options = {}) => {
    const { sandboxId, count } = parseOrRefuse("branch", Input, input);
    const { id } = checkBatchOptions(parts, options);
    const source = await sandboxes.get(sandboxId);
    const taken = await methods.snapshot({ sandboxId, branch: id }, { idempotencyKey: `branch ${id}` });
    const snapshot = await taken.result({ signal: options.signal });
    return batch(
      { ...toCopy(source, snapshot), count },
      { ...options, id, idempotencyKey: undefined },
      { inheritsTtl: true },
    );
  };
}

function toCopy(
  source: SandboxRecord,
  { snapshotId, execd }: Pick<JobOutput<"snapshot">, "snapshotId" | "execd">,
): JobInput<"provision"> {
  const { team, metadata, services, ttlSeconds, ttlAction, ttlExtendOnUse, idleSeconds, idleAction, wakeOnHttp } =
    source;
  return {
    template: snapshotId,
    clone: "linked_or_full",
    waitFor: execd ? "execd" : "address",
    priority: "interactive",
    team,
    metadata,
    services: services.map(({ name, port, auth }) => ({ name, port, auth })),
    ttlAction,
    ttlExtendOnUse,
    idleSeconds: idleSeconds ?? null,
    idleAction,
    wakeOnHttp,
    ...(source.expiresAt === undefined || ttlSeconds === undefined ? {} : { ttlSeconds }),
  };
}
