import { z } from "zod";
import { SandboxId, SnapshotId } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const delete_snapshot = defineJob({
  summary: "Delete a snapshot; sandboxes that were made from it stay",
  input: z.strictObject({ sandboxId: SandboxId, snapshotId: SnapshotId }),
  /** `existed` is false when the sandbox had no such snapshot (any more). */
  output: z.object({ deleted: z.literal(true), existed: z.boolean() }),
  queue: "node",
  frees: true,
  attempts: 6,
  timeoutMs: 900_000,
});
