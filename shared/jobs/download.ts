import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { FilePath, TransferFormat } from "./fields.ts";

/** The content is not in the result: `handle.content()` reads it. */
export const download = defineJob({
  summary: "Fetch a file, or a folder as a tar, from a sandbox",
  input: z.strictObject({
    sandboxId: SandboxId,
    /** Of the file; with `format: "tar"` of the folder, whose name is not in the tar. */
    path: FilePath,
    format: TransferFormat,
  }),
  /** `bytes`: of the content. `mode`: the permission bits of the file or folder. */
  output: z.object({ path: z.string(), bytes: z.number().int(), mode: z.number().int() }),
  queue: "exec",
  uses: true,
  attempts: 6,
  timeoutMs: 900_000,
  quotas: "execs",
});
