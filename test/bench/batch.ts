/** The bench of batches: how fast many provisions are accepted, and what they cost in memory while they wait. */
import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs, promisify } from "node:util";
import type { Bench } from "./bench.ts";
import { quantile, round, spread, wholeNumber } from "./figures.ts";
import { startProgram, startWorld, TEMPLATE } from "./world.ts";

/** The worker's clockwork looks at all that is open every 3 s, and at more every minute. */
const WATCHED_MS = 10_000;
const SAMPLE_MS = 250;

const HELP = `npm run bench -- batch [options]

  One call of fleet.batch for many provisions, in a producer process that has just started, while a worker places and makes
  as many as the stand-in for Proxmox VE has slots for. Redis, the stand-in, the worker and each round's producer are
  processes of their own, all on this machine, whose cores they share; each round is a fleet of its own. Their code was
  compiled before, as the package's is.

  --count N          provisions of the batch (10000)
  --rounds N         batches, one after the other (3)
  --json             {acceptMs, producerRssMb, workerRssMb}
  --help

  acceptMs           from before the call until all are accepted, connections included; median of the rounds.
  producerRssMb      the most memory that a producer ever had resident; worst of the rounds.
  workerRssMb        the same of the worker, while the batch is sent and for ${WATCHED_MS / 1_000} s after it; worst of the rounds.
`;

export interface BatchReport {
  acceptMs: number;
  producerRssMb: number;
  workerRssMb: number;
}

export const batch: Bench = {
  summary: "how fast a batch is accepted, and the memory of producer and worker",
  help: HELP,
  async run(args) {
    const { values } = parseArgs({
      args,
      options: {
        count: { type: "string", default: "10000" },
        rounds: { type: "string", default: "3" },
        json: { type: "boolean", default: false },
      },
    });
    const count = wholeNumber("--count", values.count);
    const rounds = wholeNumber("--rounds", values.rounds);
    await using _ = await compileOnce();
    const measured: BatchReport[] = [];
    for (let round = 0; round < rounds; round++) measured.push(await measure(count));
    const report = toReport(measured);
    process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : toText(count, report, measured));
    return 0;
  },
};

/** As in the package, whose code is JavaScript: stripping types takes a compiler into each process, of some 25 MB. */
async function compileOnce(): Promise<AsyncDisposable> {
  const folder = await mkdtemp(join(tmpdir(), "fleet-bench-code-"));
  process.env["NODE_COMPILE_CACHE"] = folder;
  const files = ["../../producers/index.ts", "./batch-producer.ts", "../../workers/fleet.ts", "../../workers/main.ts"];
  for (const file of files) {
    // Without arguments and settings they end at once, and what they had loaded is kept.
    const url = new URL(file, import.meta.url).href;
    const code = `await import(${JSON.stringify(url)}).catch(() => {})`;
    await promisify(execFile)(process.execPath, ["--input-type=module", "-e", code]).catch(() => {});
  }
  return { [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) };
}

async function measure(count: number): Promise<BatchReport> {
  await using world = await startWorld({ workers: 1 });
  const [pid = 0] = world.workerPids;
  const over = new AbortController();
  const worker = watchMemory(pid, over.signal);
  const args = [world.redisUrl, world.prefix, TEMPLATE, String(count)];
  await using producer = await startProgram(new URL("./batch-producer.ts", import.meta.url), args);
  const { acceptMs, rssMb, total } = producer.told;
  if (Number(total) !== count) throw new Error(`${total} of ${count} were accepted`);
  await delay(WATCHED_MS);
  over.abort();
  return { acceptMs: Number(acceptMs), producerRssMb: Number(rssMb), workerRssMb: await worker };
}

/** The most that a process had resident until then, in MB. */
async function watchMemory(pid: number, signal: AbortSignal): Promise<number> {
  let most = 0;
  while (!signal.aborted) {
    const { stdout } = await promisify(execFile)("ps", ["-o", "rss=", "-p", String(pid)]);
    most = Math.max(most, Number(stdout) / 1_024);
    await delay(SAMPLE_MS, undefined, { signal }).catch(() => {});
  }
  return most;
}

function toReport(measured: readonly BatchReport[]): BatchReport {
  return {
    acceptMs: Math.round(
      quantile(
        measured.map((one) => one.acceptMs),
        0.5,
      ),
    ),
    producerRssMb: round(Math.max(...measured.map((one) => one.producerRssMb)), 1),
    workerRssMb: round(Math.max(...measured.map((one) => one.workerRssMb)), 1),
  };
}

function toText(
  count: number,
  { acceptMs, producerRssMb, workerRssMb }: BatchReport,
  measured: readonly BatchReport[],
) {
  return `
accepted           ${count} in ${acceptMs} ms, median of ${measured.length} (${spread(measured.map((one) => one.acceptMs))}; 10,000 in 3 s are promised)
producer           ${producerRssMb} MB (under 150 MB is promised)
worker             ${workerRssMb} MB (under 250 MB is promised)
`;
}
