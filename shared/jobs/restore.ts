import { z } from "zod";
import { NodeName, SandboxId, SnapshotId, Vmid } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const restore = defineJob({
  summary: "Take a sandbox back to a snapshot of it; it runs, is paused or stopped afterwards as before",
  input: z.strictObject({ sandboxId: SandboxId, snapshotId: SnapshotId }),
  output: z.object({
    snapshotId: SnapshotId,
    name: z.string(),
    node: NodeName,
    vmid: Vmid,
    state: z.enum(["running", "paused", "stopped"]),
  }),
  queue: "node",
  attempts: 6,
  timeoutMs: 900_000,
});
