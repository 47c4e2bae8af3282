import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { FilePath, TransferFormat } from "./fields.ts";

/** The content is given beside the input and lies sealed under a key of its own: see `shared/state/contents.ts`. */
export const upload = defineJob({
  summary: "Write a file, or the files of a tar, into a sandbox",
  input: z.strictObject({
    sandboxId: SandboxId,
    /** Of the file; with `format: "tar"` of the folder that it is unpacked in. Folders above it are made. */
    path: FilePath,
    format: TransferFormat,
    /** Permission bits of the file, such as 0o755; when absent those it had, of a new file 0o644. */
    mode: z.number().int().min(0).max(0o7777).optional(),
    /** `user`, `user:group` or numbers; when absent whose it was, of a new file root. */
    owner: z
      .string()
      .regex(/^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63}(:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,63})?$/, "must be user, or user:group")
      .optional(),
  }),
  /** `bytes`: of the content. */
  output: z.object({ path: z.string(), bytes: z.number().int() }),
  queue: "exec",
  uses: true,
  attempts: 6,
  timeoutMs: 900_000,
  quotas: "execs",
});
