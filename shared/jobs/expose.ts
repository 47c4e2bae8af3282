import { z } from "zod";
import { SandboxId, ServiceName } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { ExposablePort, ExposedService, ServiceAuth } from "./fields.ts";

export const expose = defineJob({
  summary: "Give a port of a sandbox a name and a URL",
  input: z.strictObject({
    sandboxId: SandboxId,
    name: ServiceName,
    port: ExposablePort,
    /** `link` for a public URL when absent; on a LAN only `none`. */
    auth: ServiceAuth.optional(),
    /** Answers only once the service was seen to: a connection (`tcp`), or any HTTP response below 500 (`http`). */
    waitUntilReady: z.enum(["tcp", "http"]).optional(),
    /** How long it may take; then `not_ready`, and nothing is exposed. */
    readyTimeoutMs: z.number().int().min(100).max(600_000).default(30_000),
  }),
  output: ExposedService,
  queue: "exec",
  uses: true,
  attempts: 5,
  timeoutMs: 660_000,
});
