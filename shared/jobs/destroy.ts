import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const destroy = defineJob({
  summary: "Destroy a sandbox and everything of it; legal in every state",
  input: z.strictObject({ sandboxId: SandboxId }),
  /** `existed` is false when there was no container (any more). */
  output: z.object({ destroyed: z.literal(true), existed: z.boolean() }),
  queue: "node",
  frees: true,
  attempts: 12,
  timeoutMs: 900_000,
});
