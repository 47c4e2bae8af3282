import { z } from "zod";
import { SandboxId } from "../ids.ts";
import { defineJob } from "./define-job.ts";
import { Command, UserName } from "./fields.ts";

/** Columns or rows of a terminal. */
export const TerminalSize = z.number().int().min(1).max(10_000);

export const SILENCE_MS = 20_000;

export const shell = defineJob({
  summary: "Open an interactive terminal in a sandbox, over SSH to its node",
  input: z.strictObject({
    sandboxId: SandboxId,
    /** In place of a login shell, with the terminal as its input and output. */
    command: Command.optional(),
    /** Whom it runs as, with that user's HOME; root when absent. */
    user: UserName.optional(),
    cols: TerminalSize.default(80),
    rows: TerminalSize.default(24),
    /** The kind of terminal that the output is shown on, as in TERM. */
    term: z
      .string()
      .regex(/^[a-zA-Z0-9][a-zA-Z0-9._+-]{0,63}$/, "must be a terminal's name, such as xterm-256color")
      .default("xterm-256color"),
    /** It is hung up once nothing was heard for so long, in ms, of whoever holds it, who gives four signs of life in it. */
    silenceMs: z.number().int().min(1_000).max(600_000).default(SILENCE_MS),
  }),
  output: z.object({
    /** 129 where it did not end by itself. */
    exitCode: z.number().int(),
    /** `exit`: by itself; `closed`: it was hung up; `vanished`: nothing was heard of whoever held it any more. */
    ended: z.enum(["exit", "closed", "vanished"]),
    durationMs: z.number(),
  }),
  queue: "exec",
  uses: true,
  quotas: "execs",
  attempts: 3,
  timeoutMs: 86_400_000,
});
