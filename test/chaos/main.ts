/** `npm run chaos`: breaks everything around a fleet at work, then compares PVE's truth with the fleet's records. */
import { parseArgs } from "node:util";
import { FAULT_KINDS, type FaultKind } from "./plan.ts";
import { type ChaosReport, countWrongs, runChaos } from "./run.ts";

const HELP = `npm run chaos -- [options]

  Starts Redis, a stand-in for Proxmox VE with 3 nodes and SSH, and worker processes; while producers of several teams
  send operations, workers are killed and frozen, Redis is killed and loses its last second, jobs vanish, PVE loses
  replies, nodes and tasks, and people lay hands on containers; TTLs end, a pool of warm sandboxes serves some provisions,
  and the reconcile is on. Then all faults end, every operation must end, and PVE's truth must equal the records.
  The same seed gives the same plan of faults.

  --seed N           which plan (1)
  --operations N     how many operations are sent (500)
  --workers N        worker processes (3)
  --minutes M        send no longer than this (30)
  --faults A,B       only these, or "none" (all):
                     ${FAULT_KINDS.join(", ")}
  --no-ssh           the workers may not log in to the nodes: then a container whose lock is stuck ends as quarantined
  --logs FOLDER      keep what the workers write
  --json             print the report as JSON; without it also what happens, on stderr
  --help

  Exit code 0: nothing lost, doubled, leaked, stuck, adrift or over a limit (nor quarantined, with SSH). 1: something was. 2: wrong arguments.
`;

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    operations: { type: "string", default: "500" },
    workers: { type: "string", default: "3" },
    minutes: { type: "string", default: "30" },
    faults: { type: "string", default: "all" },
    "no-ssh": { type: "boolean", default: false },
    logs: { type: "string" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

if (values.help) process.stdout.write(HELP);
else process.exitCode = await main();

async function main(): Promise<number> {
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130));
  const begun = performance.now();
  const log = (line: string) => {
    if (!values.json)
      process.stderr.write(`[${((performance.now() - begun) / 1_000).toFixed(1).padStart(6)} s] ${line}\n`);
  };
  const report = await runChaos({
    seed: wholeNumber("seed", 0),
    operations: wholeNumber("operations", 1),
    workers: wholeNumber("workers", 1),
    minutes: wholeNumber("minutes", 1),
    kinds: toKinds(values.faults),
    ssh: !values["no-ssh"],
    logs: values.logs,
    log,
  });
  process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : toText(report));
  return countWrongs(report) > 0 ? 1 : 0;
}

function wholeNumber(name: "seed" | "operations" | "workers" | "minutes", least: number): number {
  const value = Number(values[name]);
  if (Number.isSafeInteger(value) && value >= least) return value;
  return refuse(`--${name} must be a whole number from ${least} on`);
}

function toKinds(text: string): ReadonlySet<FaultKind> {
  if (text === "all") return new Set(FAULT_KINDS);
  const names = text === "none" ? [] : text.split(",");
  const kinds = FAULT_KINDS.filter((kind) => names.includes(kind));
  if (kinds.length < names.length) refuse(`--faults knows ${FAULT_KINDS.join(", ")}`);
  return new Set(kinds);
}

function refuse(text: string): never {
  process.stderr.write(`chaos: ${text}\n`);
  process.exit(2);
}

function toText({ findings, failed, faults, ...numbers }: ChaosReport): string {
  const counts = (of: Readonly<Record<string, number>>) =>
    Object.entries(of)
      .sort(([, a], [, b]) => b - a)
      .map(([name, count]) => `${name} ${count}`)
      .join(", ") || "none";
  const lines = Object.entries(numbers).map(([name, value]) => `${name.padEnd(18)} ${value}`);
  lines.push(`${"failed".padEnd(18)} ${counts(failed)}`, `${"faults".padEnd(18)} ${counts(faults)}`);
  for (const [what, found] of Object.entries<string[]>({ ...findings }))
    lines.push(...found.map((one) => `${what}: ${one}`));
  return `${lines.join("\n")}\n`;
}
