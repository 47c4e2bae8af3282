/** `npm run simulate`: how the placement code spreads many sandboxes over many nodes, and how long it thinks. */
import { parseArgs } from "node:util";
import { simulate } from "./simulate.ts";

const HELP = `npm run simulate -- [options]

  Sandboxes arrive, get a node from the code that workers place them with, live for ten minutes to two hours of a made
  clock, and end. Nodes have 128 to 512 GiB and four slots. Prints how evenly memory was promised when most were alive.

  --nodes N           nodes of the cluster (100)
  --sandboxes N       how many arrive (50000)
  --policy P          spread or pack, as FLEET_PLACEMENT (spread)
  --seed N            which sizes, lives and moments (1)
  --json              print the figures as JSON
  --help

  Exit code 0. 1: a limit did not hold, or the median placement took 1 ms or more. 2: wrong arguments.
`;

try {
  process.exitCode = main();
} catch (error) {
  process.stderr.write(`simulate: ${error instanceof Error ? error.message : String(error)}; see --help\n`);
  process.exitCode = 2;
}

function main(): number {
  const { values } = parseArgs({
    options: {
      nodes: { type: "string", default: "100" },
      sandboxes: { type: "string", default: "50000" },
      policy: { type: "string", default: "spread" },
      seed: { type: "string", default: "1" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const { policy } = values;
  if (policy !== "spread" && policy !== "pack") throw new Error(`--policy must be spread or pack, not ${policy}`);
  const options = {
    nodes: toWhole("nodes", values.nodes),
    sandboxes: toWhole("sandboxes", values.sandboxes),
    seed: toWhole("seed", values.seed),
    policy,
  } as const;
  const begun = performance.now();
  const result = simulate(options);
  const seconds = (performance.now() - begun) / 1_000;
  const percent = (share: number) => `${(share * 100).toFixed(1)} %`;
  const { memory, placementMs } = result;
  const text = [
    `${options.sandboxes} sandboxes on ${options.nodes} nodes, ${policy}: ${seconds.toFixed(1)} s`,
    `  at most alive         ${result.peak}, on ${result.nodesUsed} nodes`,
    `  memory promised then  ${percent(memory.mean)} of what a node may, ${percent(memory.min)} to ${percent(memory.max)}, deviation ${percent(memory.sd)}`,
    `  placement             ${placementMs.p50.toFixed(3)} ms median, ${placementMs.p99.toFixed(3)} ms p99`,
    `  waited for a slot     ${result.waits} times`,
    `  over a limit          ${result.overLimit}`,
  ].join("\n");
  process.stdout.write(values.json ? `${JSON.stringify({ ...options, ...result })}\n` : `${text}\n`);
  return result.overLimit === 0 && result.placed === options.sandboxes && placementMs.p50 < 1 ? 0 : 1;
}

function toWhole(name: string, text: string): number {
  const value = Number(text);
  if (/^\d{1,7}$/.test(text) && value > 0) return value;
  throw new Error(`--${name} must be a whole number from 1 to 9999999, not ${text}`);
}
