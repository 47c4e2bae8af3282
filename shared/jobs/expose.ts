import { z } from "zod";
import { SandboxId, ServiceName } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { ExposablePort, ExposedService } from "./fields.ts";

export const expose = defineJob({
  summary: "Give a port of a sandbox a name and a URL",
  input: z.strictObject({ sandboxId: SandboxId, name: ServiceName, port: ExposablePort }),
  output: ExposedService,
  queue: "exec",
  attempts: 5,
  timeoutMs: 60_000,
});
