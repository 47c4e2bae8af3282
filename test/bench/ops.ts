/** The bench of the ops pages: how soon they answer for a big fleet, and what telemetry costs commands. */
import { parseArgs } from "node:util";
import { Worker } from "bullmq";
import { newOperationId, newSandboxId, TeamId } from "../../shared/ids.ts";
import { createQueues, nodeQueue } from "../../shared/queues.ts";
import { closeRedis, connectRedis } from "../../shared/redis/connect.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { until } from "../integration/fleet/until.ts";
import type { Bench } from "./bench.ts";
import { quantile, round, spread } from "./figures.ts";
import { opsUrl } from "./ops-url.ts";
import { measureTelemetry } from "./telemetry.ts";
import { startWorld, TEMPLATE, type World } from "./world.ts";

const NODE_COUNT = 20;
const SANDBOXES = 5_000;
const FINISHED = 10_000;
const WAITING = 2_000;
const LOOKS = 30;

const HELP = `npm run bench -- ops [options]

  Pages: Redis with ${SANDBOXES} sandboxes on ${NODE_COUNT} nodes, ${FINISHED} finished and ${WAITING} waiting jobs, and a process with the role
  ops alone; ${LOOKS} looks each. Telemetry: a worker at full load of commands to a daemon that answers at once, its /metrics read
  every 5 s and its traces sent to a collector, profiles itself: telemetry's own samples over all that are not idle.

  --json             {telemetryCostShare, boardMs, fleetPageMs}
  --help

  boardMs            median until Bull Board's data of a queue with its finished jobs is there.
  fleetPageMs        median of the slower one of the fleet page and the list of sandboxes, searched.
  telemetryCostShare the share of the worker's work that is counting, being read and tracing; median of the windows.
`;

export const ops: Bench = {
  summary: "answers of the ops pages for a big fleet, and what telemetry costs",
  help: HELP,
  async run(args) {
    const { values } = parseArgs({ args, options: { json: { type: "boolean", default: false } } });
    const { board, fleet, list } = await measurePages();
    const { metrics, traces, commands } = await measureTelemetry();
    const shares = metrics.map((share, at) => share + (traces[at] ?? 0));
    const fleetPageMs = Math.max(quantile(fleet, 0.5), quantile(list, 0.5));
    const report = {
      telemetryCostShare: round(quantile(shares, 0.5), 3),
      boardMs: round(quantile(board, 0.5), 1),
      fleetPageMs: round(fleetPageMs, 1),
    };
    process.stdout.write(
      values.json
        ? `${JSON.stringify(report)}\n`
        : `
board              median ${report.boardMs} ms (${spread(board, 1)}; at most 300 are promised)
fleet page         median ${round(quantile(fleet, 0.5), 1)} ms (${spread(fleet, 1)}; at most 300 are promised)
sandboxes, search  median ${round(quantile(list, 0.5), 1)} ms (${spread(list, 1)}; at most 300 are promised)
telemetry          ${report.telemetryCostShare} of a worker's work (${spread(shares, 3)} in windows of 4 s, ${commands} commands; at most 0.05 is promised)
                   metrics ${spread(metrics, 3)}, traces ${spread(traces, 3)}
`,
    );
    return 0;
  },
};

async function measurePages() {
  const world = await startWorld({ workers: 1, nodes: NODE_COUNT, env: { FLEET_ROLES: "ops", OPS_PORT: "0" } });
  await using _world = world;
  await fill(world);
  const url = await opsUrl(world);
  const look = async (path: string) => {
    const took: number[] = [];
    for (let turn = 0; turn < LOOKS; turn++) {
      const begun = performance.now();
      const reply = await fetch(`${url}${path}`);
      if (!reply.ok) throw new Error(`${path}: ${reply.status}\n${(await world.workerLog(0)).slice(-1_000)}`);
      await reply.text();
      took.push(performance.now() - begun);
    }
    return took;
  };
  const page = await (await fetch(`${url}/`)).text();
  if (!page.includes(`>${SANDBOXES} running<`)) throw new Error("the sandboxes are not there");
  return {
    board: await look("/board/api/queues?activeQueue=pve1%3Anode-pve1&status=completed&page=1&jobsPerPage=20"),
    fleet: await look("/"),
    list: await look("/sandboxes?q=cmux-2"),
  };
}

/** As a fleet that was busy for a while leaves Redis. */
async function fill({ redisUrl, prefix }: World): Promise<void> {
  await using stack = new AsyncDisposableStack();
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  const keys = createKeys(prefix);
  const pipeline = redis.pipeline();
  for (let at = 0; at < SANDBOXES; at++) {
    const id = newSandboxId();
    const createdAt = Date.now() - 1_000 * at;
    const vmid = 20_000 + at;
    const { set } = encodeFields({
      id,
      operation: newOperationId(),
      team: `team-${at % 10}`,
      template: TEMPLATE,
      state: "running",
      node: `pve${1 + (at % NODE_COUNT)}`,
      vmid,
      hostname: `cmux-${vmid}`,
      address: `10.0.${at >> 8}.${at & 255}`,
      metadata: {},
      createdAt,
      "service:vscode": {
        name: "vscode",
        port: 39_378,
        url: `http://10.0.0.1:39378`,
        level: "lan_address",
        auth: "none",
        epoch: "1",
      },
    });
    pipeline.hset(keys.sandbox(id), ...set);
    pipeline.zadd(keys.sandboxes, createdAt, id);
  }
  await pipeline.exec();
  const queues = stack.adopt(createQueues(redis, prefix), (all) => all.close());
  const team = TeamId.parse("team-1");
  const jobs = (count: number) =>
    Array.from({ length: count }, () => ({
      name: "provision",
      data: { operation: newOperationId(), sandbox: newSandboxId(), team },
    }));
  for (let node = 1; node <= NODE_COUNT; node++) {
    const queue = queues.get(nodeQueue(`pve${node}`));
    await queue.addBulk(jobs(FINISHED / NODE_COUNT));
    const finisher = new Worker(queue.name, async () => ({ outcome: "succeeded" }), {
      connection: redis,
      prefix,
      concurrency: 100,
    });
    await until(async () => (await queue.getCompletedCount()) === FINISHED / NODE_COUNT, "the jobs to be finished");
    await finisher.close();
    await queue.addBulk(jobs(WAITING / NODE_COUNT));
  }
}
