/** The command `fleet` without a process of its own. */
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import { runProgram } from "../../producers/cli/program.ts";
import { createCli } from "../../producers/cli/session.ts";
import { createTerminal } from "../../producers/cli/terminal.ts";

/** Runs one command line. */
export async function command(env: Readonly<Record<string, string | undefined>>, ...words: string[]) {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const exit = (code: number) => {
    throw new Error(`it wanted to exit with ${code}`);
  };
  const terminal = createTerminal({ stdout, stderr }, env, exit);
  const code = await runProgram(createCli({ terminal, env, exit }), words);
  const [out, err] = await Promise.all([text(stdout.end()), text(stderr.end())]);
  return { code, out, err };
}
