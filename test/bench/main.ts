/** `npm run bench`: what the fleet adds to what PVE and exec daemons take. */
import { FleetError } from "../../shared/errors.ts";
import { batch } from "./batch.ts";
import type { Bench } from "./bench.ts";
import { exec } from "./exec.ts";
import { gate } from "./gate.ts";
import { ops } from "./ops.ts";
import { provision } from "./provision.ts";
import { warm } from "./warm.ts";

const BENCHES: Readonly<Record<string, Bench>> = { provision, exec, batch, ops, gate, warm };

const HELP = `npm run bench -- BENCH [options]

${Object.entries(BENCHES)
  .map(([name, { summary }]) => `  ${name.padEnd(12)}${summary}`)
  .join("\n")}

  npm run bench -- BENCH --help tells what a bench measures, and how.
`;

const [name = "", ...args] = process.argv.slice(2);
const bench = Object.hasOwn(BENCHES, name) ? BENCHES[name] : undefined;

if (name === "--help" || name === "-h") process.stdout.write(HELP);
else if (bench === undefined) {
  process.stderr.write(`bench: ${name === "" ? "which one?" : `there is no "${name}"`}\n\n${HELP}`);
  process.exitCode = 2;
} else if (args.includes("--help")) process.stdout.write(bench.help);
else {
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130));
  process.exitCode = await bench.run(args).catch((error: unknown) => {
    if (!isAboutArguments(error)) throw error;
    process.stderr.write(`bench: ${error.message}\n`);
    return 2;
  });
}

function isAboutArguments(error: unknown): error is Error {
  if (error instanceof FleetError) return error.code === "invalid_input";
  return error instanceof Error && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS");
}
