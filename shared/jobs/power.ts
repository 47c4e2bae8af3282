import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const power = defineJob({
  summary: "Start, stop, shut down or reboot a sandbox",
  input: z.strictObject({
    sandboxId: SandboxId,
    /** `stop` is hard and at once; `shutdown` asks the guest. */
    action: z.enum(["start", "stop", "shutdown", "reboot"]),
    /** For shutdown and reboot: seconds that the guest gets. */
    graceSec: z.number().int().min(1).max(600).default(30),
    /** For shutdown: stop hard when the guest did not obey in time. */
    force: z.boolean().default(true),
  }),
  output: z.object({ state: z.enum(["running", "stopped"]), changed: z.boolean() }),
  queue: "node",
  attempts: 6,
  timeoutMs: 900_000,
});
