import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { Command, Env, UserName } from "./fields.ts";

/** Of what a command may read. */
export const STDIN_BYTES = 1_048_576;

/** What a command reads; from here on in base64. */
const Stdin = z
  .union([z.string(), z.custom<Uint8Array>((input) => input instanceof Uint8Array)], {
    error: "must be a string or bytes",
  })
  .refine((input) => Buffer.byteLength(input) <= STDIN_BYTES, {
    error: `must have at most ${STDIN_BYTES} bytes; put more into a file of the sandbox first`,
  })
  .transform((input) => Buffer.from(input).toString("base64"));

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
    /** Whom it runs as, with that user's HOME; root when absent. */
    user: UserName.optional(),
    /** What it reads, sealed like `env`; at most 1 MiB. */
    stdin: Stdin.optional(),
    /** Bytes of each stream that the result keeps; the rest is counted, and `output()` has it while it comes. */
    outputLimitBytes: z.number().int().min(0).max(1_048_576).default(262_144),
    /** Of the command, in ms; it ends with exit code 124. Also the longest wait for a sandbox that is not up yet. */
    timeoutMs: z.number().int().min(1).max(86_400_000).default(300_000),
    /**
     * Output as the command prints it, which takes two more processes in the sandbox and some 4 ms. Else the exec daemon drops
     * blank lines and `\r`, ends each last line, and of one command in dozens that write both streams at once its reply breaks
     * (`exec_interrupted`). What is no UTF-8 is replaced all the same, and a line has at most 1 MiB.
     */
    exact: z.boolean().default(false),
    /** The command may be run again when its worker died in the middle. */
    idempotent: z.boolean().default(false),
  }),
  output: z.object({
    /** 124 when its time was up; -1 where a signal ended its bash, and the exec daemon says no more than that. */
    exitCode: z.number().int(),
    stdout: z.string(),
    stderr: z.string(),
    /** True where a stream was longer than `outputLimitBytes`. */
    truncated: z.boolean(),
    stdoutBytes: z.number().int(),
    stderrBytes: z.number().int(),
    durationMs: z.number(),
  }),
  queue: "exec",
  uses: true,
  onceUnless: "idempotent",
  quotas: "execs",
  attempts: 6,
  timeoutMs: 87_000_000,
  secret: ["env", "stdin"],
});
