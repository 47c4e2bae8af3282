import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { resources } from "./fields.ts";

export const configure = defineJob({
  summary: "Change the resources of a live sandbox",
  input: z.strictObject({ sandboxId: SandboxId, ...resources }).refine((input) => Object.keys(input).length > 1, {
    error: "nothing to change; give cores, cpulimit, cpuunits, memoryMib, swapMib, diskGib or onboot",
  }),
  output: z.object({
    /** What the container has now. */
    applied: z.object({
      cores: z.number().optional(),
      cpulimit: z.number().optional(),
      cpuunits: z.number().optional(),
      memoryMib: z.number().optional(),
      swapMib: z.number().optional(),
      /** Templates may have disks of a fraction of a GiB. */
      diskGib: z.number().optional(),
      onboot: z.boolean().optional(),
    }),
    /** PVE keys that take effect at the next start. */
    pendingUntilReboot: z.array(z.string()),
  }),
  queue: "node",
  attempts: 6,
  timeoutMs: 300_000,
});
