import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { IdleSeconds } from "./fields.ts";

export const power = defineJob({
  summary: "Start, stop, shut down, reboot, pause or resume a sandbox",
  input: z.strictObject({
    sandboxId: SandboxId,
    /**
     * `stop` is hard and at once; `shutdown` asks the guest. `pause` freezes all processes and keeps their memory, `resume`
     * lets them go on: both need SSH to the node. `start` also resumes one that is paused.
     */
    action: z.enum(["start", "stop", "shutdown", "reboot", "pause", "resume"]),
    /** Without SSH, or where a node refuses it: `pause` stops the sandbox instead, which loses its memory, and `resume` starts it again. */
    allowStop: z.boolean().default(false),
    /** For `pause` and `stop`: only where nobody has used it for so long; else nothing changes. */
    ifIdleSeconds: IdleSeconds.optional(),
    /** For `pause` and `stop`: only where its TTL is over; else nothing changes. */
    ifExpired: z.boolean().optional(),
    /** For shutdown and reboot: seconds that the guest gets. */
    graceSec: z.number().int().min(1).max(600).default(30),
    /** For shutdown: stop hard when the guest did not obey in time. */
    force: z.boolean().default(true),
  }),
  output: z.object({ state: z.enum(["running", "stopped", "paused"]), changed: z.boolean() }),
  queue: "node",
  frees: { action: ["stop", "shutdown", "pause"] },
  attempts: 6,
  timeoutMs: 900_000,
});
