import { z } from "zod";
import { NodeName, OperationId, SandboxId, Vmid } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { Metadata, StorageName } from "./fields.ts";

/** Its host name in PVE. Of several with one name the newest is provisioned. */
export const TemplateLabel = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/,
    "must be 1 to 63 lower-case letters, digits or inner hyphens, a letter first",
  );
/** With it the template carries the tag `<name>-<version>`, which provision takes, too; and NAME:VERSION. */
export const TemplateVersion = z
  .string()
  .regex(/^[a-z0-9]([a-z0-9_.-]{0,30}[a-z0-9])?$/, "must be 1 to 32 lower-case letters, digits, '_', '.' or '-'");
export const TemplateNotes = z
  .string()
  .max(1_024)
  .refine((text) => !text.includes("\0"), { error: "must not hold a NUL byte" });

export const template = defineJob({
  summary: "Make a PVE template from a sandbox as it stands; provision takes its id, name or VMID",
  input: z.strictObject({
    /** Goes on running, or stays stopped, as it is. */
    sandboxId: SandboxId,
    name: TemplateLabel,
    version: TemplateVersion.optional(),
    /** Where its disks go; the storages that the sandbox's are on when absent. */
    storage: StorageName.optional(),
    description: TemplateNotes.optional(),
    metadata: Metadata.default({}),
  }),
  output: z.object({
    templateId: SandboxId,
    /** The same: as a snapshot that outlives its sandbox. */
    snapshotId: SandboxId,
    operationId: OperationId,
    name: z.string(),
    version: z.string().optional(),
    node: NodeName,
    vmid: Vmid,
    /** ms per step. */
    timings: z.record(z.string(), z.number()),
  }),
  queue: "node",
  makesSandbox: true,
  quotas: "provisions",
  attempts: 8,
  timeoutMs: 3_600_000,
});
