import { z } from "zod";
import { SandboxId, ServiceName } from "../ids.ts";
import { defineJob } from "./define-job.ts";

export const link = defineJob({
  summary: "Make a signed link that opens a service with auth link",
  input: z.strictObject({
    sandboxId: SandboxId,
    name: ServiceName,
    /** Where it leads to, with its query. */
    path: z
      .string()
      .max(2_048)
      .regex(/^\/([^/\\\s][^\\\s]*)?$/, "must be a path that begins with one '/'")
      .default("/"),
    /** How long the link and the cookie that it sets let in. */
    ttlSeconds: z.number().int().min(10).max(2_592_000).default(86_400),
  }),
  /** `expiresAt`: ms since the epoch. */
  output: z.object({ url: z.url(), expiresAt: z.number() }),
  queue: "exec",
  uses: true,
  attempts: 5,
  timeoutMs: 60_000,
});
