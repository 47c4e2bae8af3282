import { z } from "zod";
import { SandboxId, ServiceName } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const hide = defineJob({
  summary: "Take a service's URL away",
  input: z.strictObject({ sandboxId: SandboxId, name: ServiceName }),
  /** `hidden` is false when there was no such service. */
  output: z.object({ name: ServiceName, hidden: z.boolean() }),
  queue: "exec",
  frees: true,
  attempts: 5,
  timeoutMs: 60_000,
});
