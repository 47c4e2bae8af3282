import { z } from "zod";
import { NodeName, OperationId, SandboxId, Vmid } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { StorageName } from "./fields.ts";
import { TemplateRef } from "./provision.ts";

export const replicate = defineJob({
  summary: "Make a replica of a template on another node, so that it is cloned there too",
  input: z.strictObject({
    template: TemplateRef,
    node: NodeName,
    /** A shared one that both nodes have, for containers; one that clones linked, if there is any, when absent. */
    storage: StorageName.optional(),
  }),
  output: z.object({
    replicaId: SandboxId,
    operationId: OperationId,
    /** VMID of the template that it is a replica of. */
    of: Vmid,
    node: NodeName,
    vmid: Vmid,
    storage: z.string(),
    /** ms per step. */
    timings: z.record(z.string(), z.number()),
  }),
  queue: "node",
  makesSandbox: true,
  attempts: 8,
  timeoutMs: 3_600_000,
});
