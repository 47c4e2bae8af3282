import { FleetError } from "../../shared/errors.ts";
import { STDIN_BYTES } from "../../shared/jobs/exec.ts";
import type { Terminal } from "./terminal.ts";

/** Whoever gave us a pipe that he never ends should not have to guess what we wait for. */
const PATIENCE_MS = 3_000;

/** All that is piped in. Throws `invalid_input` when it is too long, `interrupt`'s reason when the user leaves. */
export async function readStdin(terminal: Terminal, interrupt: AbortSignal): Promise<Buffer> {
  const { stdin } = process;
  const note = () => terminal.err("fleet: waiting for the end of stdin; -n runs the command without it\n");
  const timer = setTimeout(note, PATIENCE_MS);
  const leave = () => stdin.destroy();
  interrupt.addEventListener("abort", leave, { once: true });
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of stdin) {
      clearTimeout(timer);
      chunks.push(chunk as Buffer); // it has no encoding set
      bytes += chunks.at(-1)?.length ?? 0;
      if (bytes > STDIN_BYTES) throw tooLong();
    }
  } catch (error) {
    interrupt.throwIfAborted();
    throw error;
  } finally {
    clearTimeout(timer);
    interrupt.removeEventListener("abort", leave);
  }
  interrupt.throwIfAborted();
  return Buffer.concat(chunks);
}

const tooLong = () =>
  new FleetError(
    "invalid_input",
    `stdin: has more than ${STDIN_BYTES} bytes; copy them into the sandbox first (fleet cp)`,
    {
      facts: { fields: ["stdin"] },
    },
  );
