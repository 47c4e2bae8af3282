import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { Command, Env } from "./fields.ts";

/** Bytes of each stream that a result keeps; the rest is counted, not kept. */
export const EXEC_OUTPUT_LIMIT = 262_144;

export const exec = defineJob({
  summary: "Run a command in a sandbox with /bin/bash -c and return its output and exit code",
  input: z.strictObject({
    sandboxId: SandboxId,
    command: Command,
    env: Env.optional(),
    cwd: z
      .string()
      .max(4_096)
      .startsWith("/", "must be an absolute path")
      .refine((path) => !path.includes("\0"), { error: "must not hold a NUL byte" })
      .optional(),
    /** Of the command, in ms; it ends with exit code 124. Also the longest wait for a sandbox that is not up yet. */
    timeoutMs: z.number().int().min(1).max(86_400_000).default(300_000),
    /** The command may be run again when its worker died in the middle. */
    idempotent: z.boolean().default(false),
  }),
  output: z.object({
    exitCode: z.number().int(),
    stdout: z.string(),
    stderr: z.string(),
    /** True where a stream was longer than is kept (256 KiB). */
    truncated: z.boolean(),
    stdoutBytes: z.number().int(),
    stderrBytes: z.number().int(),
    durationMs: z.number(),
  }),
  queue: "exec",
  quotas: "execs",
  attempts: 6,
  timeoutMs: 87_000_000,
  secret: ["env"],
});
