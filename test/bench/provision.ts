/** The bench of provisions: one alone, a bulk, and today's client, in one run and in turns. */
import { parseArgs } from "node:util";
import type { Fleet } from "../../producers/index.ts";
import type { Bench } from "./bench.ts";
import { quantile, round, spread, wholeNumber } from "./figures.ts";
import { idealMs } from "./ideal.ts";
import { countRequests, pveShareOf, totalMs } from "./record.ts";
import { createToday, type Today } from "./today.ts";
import { type Cluster, NODE_SLOTS, NODES, REPLICAS, startWorld, TEMPLATE, type World } from "./world.ts";

const BULK = 60;
/** The watcher learns how long tasks take from the first ones. */
const WARM_UP = 5;
const PATIENCE = { timeoutMs: 120_000 };

const HELP = `npm run bench -- provision [options]

  What the fleet adds to a provision: Redis, a stand-in for Proxmox VE with the timings of a real one (${NODES.length} nodes,
  ${REPLICAS} replicas of the template each, ${NODE_SLOTS} slots a node) and the workers, in processes of their own. In turns: ${BULK} provisions
  at once; some one at a time; and one by a plain client as people have today, which asks for each task every 2 s
  and sleeps 3 s after a start. The first ${WARM_UP} provisions warm up and do not count.

  --singles N        provisions one at a time (24)
  --bulks N          bulks of ${BULK} (3)
  --workers N        worker processes (1)
  --json             {overheadMs: {p50, p95}, bulkOverIdeal, requestsPerProvision: {single, bulk},
                     today: {provisionMs, times}}
  --help

  overheadMs         from before the producer's call to its result, less PVE's own share by the stand-in's own record:
                     clone and start, each from the arrival of its request to the end of its task; the answer times
                     of the config PUT and of one reading of the addresses. All else counts as ours: Redis, waits,
                     the connections to PVE, noticing that a task has ended, asking the container's exec daemon.
  bulkOverIdeal      median over the bulks: from before the first call to the last result, over the time that a fleet
                     without any loss would take for the same steps under the same limits: each provision takes the
                     slot that is free first, then a replica that is free, and no step waits for anything else.
  requestsPerProvision  all that PVE was asked from the first call to the last result, over the provisions; only
                     the inventory apart (cluster/resources, version, DNS and the templates' configs), which is read
                     every 10 s whether there is work or not. single: mean of the provisions that count.
  today.provisionMs  median of today's client; today.times: how many times longer that is than the fleet's median.
`;

export interface ProvisionReport {
  overheadMs: { p50: number; p95: number };
  bulkOverIdeal: number;
  requestsPerProvision: { single: number; bulk: number };
  today: { provisionMs: number; times: number };
}

export const provision: Bench = {
  summary: "overhead of a provision, a bulk against its ideal, requests to PVE, today's client",
  help: HELP,
  async run(args) {
    const { values } = parseArgs({
      args,
      options: {
        singles: { type: "string", default: "24" },
        bulks: { type: "string", default: "3" },
        workers: { type: "string", default: "1" },
        json: { type: "boolean", default: false },
      },
    });
    const singles = wholeNumber("--singles", values.singles);
    const bulks = wholeNumber("--bulks", values.bulks);
    await using world = await startWorld({ workers: wholeNumber("--workers", values.workers) });
    const log = (line: string) => void (values.json || process.stderr.write(`${line}\n`));
    const measured = await measure(world, { singles, bulks, log });
    const report = toReport(measured);
    process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : toText(report, measured));
    return 0;
  },
};

interface Single {
  tookMs: number;
  pveMs: number;
  requests: Map<string, number>;
}

interface Bulk {
  tookMs: number;
  idealMs: number;
  requests: Map<string, number>;
}

interface Measured {
  singles: Single[];
  bulks: Bulk[];
  todayMs: number[];
}

/** In turns, so that a machine that is slow for a while is slow for all of them. */
async function measure(
  world: World,
  { singles, bulks, log }: { singles: number; bulks: number; log: (line: string) => void },
): Promise<Measured> {
  const measured: Measured = { singles: [], bulks: [], todayMs: [] };
  await using today = createToday(world.cluster);
  for (let round = 0; round < WARM_UP; round++) await single(world);
  for (let turn = 0; turn < bulks; turn++) {
    const until = Math.round((singles * (turn + 1)) / bulks);
    while (measured.singles.length < until) measured.singles.push(await single(world));
    log(`${until} provisions one at a time`);
    measured.todayMs.push(await todayOnce(today, turn));
    log(`today's client: ${Math.round(measured.todayMs.at(-1) ?? 0)} ms`);
    const done = await bulk(world);
    measured.bulks.push(done);
    log(`bulk of ${BULK}: ${Math.round(done.tookMs)} ms, ideal ${Math.round(done.idealMs)} ms`);
  }
  return measured;
}

const todayOnce = (today: Today, turn: number) =>
  today.provision(NODES[turn % NODES.length] ?? NODES[0], 9_001 + (turn % NODES.length));

async function single({ fleet, cluster }: World): Promise<Single> {
  const recordSince = await startRecord(cluster);
  const begun = performance.now();
  const { vmid, sandboxId } = await make(fleet);
  const tookMs = performance.now() - begun;
  const { requests, tasks } = await recordSince();
  await destroy(fleet, sandboxId);
  return { tookMs, pveMs: totalMs(pveShareOf(vmid, requests, tasks)), requests: countRequests(requests) };
}

async function bulk({ fleet, cluster }: World): Promise<Bulk> {
  const recordSince = await startRecord(cluster);
  const begun = performance.now();
  const made = await Promise.all(Array.from({ length: BULK }, () => make(fleet)));
  const tookMs = performance.now() - begun;
  const { requests, tasks } = await recordSince();
  await Promise.all(made.map(({ sandboxId }) => destroy(fleet, sandboxId)));
  const shares = made.map(({ vmid }) => pveShareOf(vmid, requests, tasks));
  const limits = { nodes: NODES.length, slots: NODE_SLOTS, replicas: REPLICAS };
  return { tookMs, idealMs: idealMs(shares, limits), requests: countRequests(requests) };
}

/** What the record has beyond what it has now. Not by time: two processes need not agree on what time it is. */
async function startRecord(cluster: Cluster) {
  const before = await cluster.record();
  return async () => {
    const { requests, tasks } = await cluster.record();
    return { requests: requests.slice(before.requests.length), tasks: tasks.slice(before.tasks.length) };
  };
}

async function make(fleet: Fleet) {
  const handle = await fleet.provision({ template: TEMPLATE, cores: 1, services: [{ name: "web", port: 8_000 }] });
  return handle.result(PATIENCE);
}

async function destroy(fleet: Fleet, sandboxId: string): Promise<void> {
  await (await fleet.destroy({ sandboxId })).result(PATIENCE);
}

function toReport({ singles, bulks, todayMs }: Measured): ProvisionReport {
  const overheads = singles.map(({ tookMs, pveMs }) => tookMs - pveMs);
  const provisionMs = quantile(todayMs, 0.5);
  const own = quantile(
    singles.map(({ tookMs }) => tookMs),
    0.5,
  );
  return {
    overheadMs: { p50: round(quantile(overheads, 0.5), 1), p95: round(quantile(overheads, 0.95), 1) },
    bulkOverIdeal: round(
      quantile(
        bulks.map(({ tookMs, idealMs }) => tookMs / idealMs),
        0.5,
      ),
      3,
    ),
    requestsPerProvision: {
      single: round(sum(meanRequests(singles, 1)), 1),
      bulk: round(sum(meanRequests(bulks, BULK)), 1),
    },
    today: { provisionMs: Math.round(provisionMs), times: round(provisionMs / own, 2) },
  };
}

/** Mean number of requests a provision, by kind. */
function meanRequests(runs: readonly { requests: Map<string, number> }[], each: number): Map<string, number> {
  const means = new Map<string, number>();
  for (const { requests } of runs)
    for (const [kind, count] of requests) means.set(kind, (means.get(kind) ?? 0) + count / runs.length / each);
  return means;
}

const sum = (counts: Map<string, number>) => [...counts.values()].reduce((total, count) => total + count, 0);

function toText(report: ProvisionReport, { singles, bulks, todayMs }: Measured): string {
  const kinds = (of: Map<string, number>) =>
    [...of]
      .sort(([, a], [, b]) => b - a)
      .map(([kind, count]) => `${kind} ${round(count, 2)}`)
      .join(", ");
  const { overheadMs, bulkOverIdeal, requestsPerProvision, today } = report;
  const own = singles.map(({ tookMs }) => tookMs);
  const pve = quantile(
    singles.map(({ pveMs }) => pveMs),
    0.5,
  );
  return `
one provision      median ${Math.round(quantile(own, 0.5))} ms of ${own.length} (${spread(own)}), of which PVE ${Math.round(pve)} ms
  overhead         median ${overheadMs.p50} ms, p95 ${overheadMs.p95} ms (at most 60 ms is promised)
                   over PVE's share: ${round(quantile(own, 0.5) / pve, 3)}
  requests         ${requestsPerProvision.single} (14): ${kinds(meanRequests(singles, 1))}
bulk of ${BULK}         ${bulks.map(({ tookMs }) => Math.round(tookMs)).join(", ")} ms
  over its ideal   median ${bulkOverIdeal} (${spread(
    bulks.map(({ tookMs, idealMs }) => tookMs / idealMs),
    3,
  )}; at most 1.15 is promised)
  requests         ${requestsPerProvision.bulk} each (10): ${kinds(meanRequests(bulks, BULK))}
today's client     median ${today.provisionMs} ms of ${todayMs.length} (${spread(todayMs)}): ${today.times} times the fleet's
`;
}
