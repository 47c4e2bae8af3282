import { z } from "zod";
import { BatchId, NodeName, SandboxId, SnapshotId, Vmid } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const snapshot = defineJob({
  summary: "Take a PVE snapshot of a sandbox; provision takes its id as a template",
  input: z.strictObject({
    sandboxId: SandboxId,
    /** PVE's rule: a letter first, 2 to 40 letters, digits, '_' or '-'; made up when absent. */
    name: z
      .string()
      .regex(/^[a-zA-Z][a-zA-Z0-9_-]{1,39}$/, "must be 2 to 40 letters, digits, '_' or '-', a letter first")
      .refine((name) => name !== "current" && name !== "vzdump", { error: "is a name that PVE keeps for itself" })
      .optional(),
    description: z.string().max(1_024).optional(),
    /** Of the sandbox's snapshots so many stay, this one included: the oldest are deleted. FLEET_SNAPSHOTS_KEPT when absent. */
    keepLast: z.int().min(1).max(100).optional(),
    /** It is deleted so long after; at most FLEET_SNAPSHOT_MAX_AGE_HOURS. */
    maxAgeSeconds: z.int().min(60).max(315_360_000).optional(),
    /** It is there for the copies of this batch, and is deleted once that has ended. */
    branch: BatchId.optional(),
  }),
  output: z.object({
    snapshotId: SnapshotId,
    name: z.string(),
    node: NodeName,
    vmid: Vmid,
    /** ms since the epoch; absent: never. */
    expiresAt: z.number().optional(),
    /** Older ones that were deleted for it. */
    removed: z.array(SnapshotId).default([]),
    /** Whether its sandbox has an exec daemon: where it has none, its copies wait for an address alone. */
    execd: z.boolean().default(true),
  }),
  queue: "node",
  attempts: 6,
  timeoutMs: 300_000,
});
