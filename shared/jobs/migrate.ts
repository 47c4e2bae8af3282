import { z } from "zod";
import { NodeName, SandboxId, Vmid } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { StorageName } from "./fields.ts";

export const migrate = defineJob({
  summary: "Move a sandbox to another node: it is shut down, its disks follow or are shared, and it is started there",
  input: z.strictObject({
    sandboxId: SandboxId,
    /** Where to; the node with the most room for it when absent. */
    target: NodeName.optional(),
    /** Where its local disks go; a storage of the same name when absent. Disks on shared storages stay where they are. */
    targetStorage: StorageName.optional(),
    /** Seconds that the guest gets to shut down. */
    graceSec: z.number().int().min(1).max(600).default(60),
    /** I/O limit of copied disks in KiB/s. */
    bwlimitKib: z.number().int().min(1).optional(),
  }),
  /** `from` is `node` where it stood there already. `state`: as before. */
  output: z.object({
    from: NodeName,
    node: NodeName,
    vmid: Vmid,
    state: z.enum(["running", "stopped"]),
    address: z.string().optional(),
  }),
  queue: "node",
  attempts: 6,
  timeoutMs: 3_600_000,
});
