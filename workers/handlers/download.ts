import { FleetError } from "../../shared/errors.ts";
import { SAYS, toReadScript } from "../exec/file-scripts.ts";
import { toTransferError } from "../exec/transfer-errors.ts";
import type { Run } from "../run/run.ts";
import { goInside, type Inside } from "../sandbox/inside.ts";
import { stayWithNode } from "./exec.ts";
import type { Handler } from "./handler.ts";
import { askOf } from "./upload.ts";

/** Changes nothing in the sandbox, so any run begins from the start; a content only stands once it is whole. */
export const download: Handler<"download"> = {
  async run(run) {
    stayWithNode(run);
    const result = await run.timed("fetch", () => goInside(run, run.call, (inside) => fetch(run, inside)));
    return { result: { path: run.input.path, ...result } };
  },
};

async function fetch(run: Run<"download">, inside: Inside): Promise<{ bytes: number; mode: number }> {
  const { contents } = run.context;
  const writer = contents.write(run.id, { ask: askOf(run), fence: run.fence });
  let mode = 0;
  let size: number | undefined;
  let whole = false;
  let complaint = "";
  const onLine = async (line: string) => {
    if (line.startsWith(SAYS.mode)) mode = toNumber(line.slice(SAYS.mode.length), 8);
    else if (line.startsWith(SAYS.size)) size = toNumber(line.slice(SAYS.size.length), 10);
    else if (line === SAYS.end) whole = true;
    else if (line.startsWith(SAYS.complaint))
      complaint = Buffer.from(line.slice(SAYS.complaint.length), "base64").toString();
    else await writer.add(Buffer.from(line, "base64"));
  };
  const { exitCode } = await inside.run({ text: toReadScript(run.input), onLine });
  if (exitCode !== 0) throw toTransferError({ exitCode, stderr: complaint }, run.input.path, size);
  // execd has been seen to end a command's output early (os/exec: Wait closes the pipe).
  if (!whole) throw new FleetError("transfer_interrupted", "the end of the content did not come through");
  const { bytes } = await writer.end();
  return { bytes, mode };
}

/** Said inside the sandbox, so it may be anything. */
const toNumber = (text: string, base: 8 | 10): number => Number.parseInt(text, base) || 0;
