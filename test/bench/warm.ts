/** The bench of pools: how soon a provision has a member, and whether many at once ever get the same. */
import { parseArgs } from "node:util";
import { request } from "undici";
import type { Fleet } from "../../producers/index.ts";
import { EXECD_PORT } from "../../shared/jobs/fields.ts";
import { closeRedis, connectRedis } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { until } from "../integration/fleet/until.ts";
import { startRedis } from "../redis.ts";
import type { Bench } from "./bench.ts";
import { quantile, round, spread, wholeNumber } from "./figures.ts";
import { type Race, raceForMembers } from "./race.ts";
import { startWorld, TEMPLATE } from "./world.ts";

const POOL = 20;
const WARM_UP = 10;
const RACE = { claims: 10_000, processes: 4 };
const PATIENCE = { timeoutMs: 60_000 };

const HELP = `npm run bench -- warm [options]

  How soon a provision is there whose container was made before it was asked for: Redis, a stand-in for Proxmox VE with
  the timings of a real one and the workers, in processes of their own. A pool of ${POOL} is filled, then claimed one at a
  time, and again. The first ${WARM_UP} warm up and do not count. And ${RACE.claims} claims at once from
  ${RACE.processes} processes, on members without containers, each given out to several.

  --claims N         provisions that count (90)
  --workers N        worker processes (1)
  --json             {claimMs: {p50, p99}, doubleClaims}
  --help

  claimMs            from before the producer's call to its result; each sandbox's exec daemon has answered then, and is
                     asked again afterwards.
  doubleClaims       sandboxes with a member that another has, too, or of which the records do not agree.
`;

export interface WarmReport {
  claimMs: { p50: number; p99: number };
  doubleClaims: number;
}

export const warm: Bench = {
  summary: "how soon a provision has a member of a pool, and that no two get the same",
  help: HELP,
  async run(args) {
    const { values } = parseArgs({
      args,
      options: {
        claims: { type: "string", default: "90" },
        workers: { type: "string", default: "1" },
        json: { type: "boolean", default: false },
      },
    });
    const claims = wholeNumber("--claims", values.claims);
    const log = (line: string) => void (values.json || process.stderr.write(`${line}\n`));
    const took = await measure({ claims, workers: wholeNumber("--workers", values.workers), log });
    const race = await raceAlone();
    log(`${race.claims} claims at once: ${race.refused} members were given out twice, and claimed once`);
    const report = toReport(took, race);
    process.stdout.write(values.json ? `${JSON.stringify(report)}\n` : toText(report, took));
    return race.doubleClaims === 0 ? 0 : 1;
  },
};

async function raceAlone(): Promise<Race> {
  await using redis = await startRedis({ engine: "process" });
  return await raceForMembers(redis.url, RACE); // not before it ends may its Redis go
}

async function measure(options: { claims: number; workers: number; log: (line: string) => void }): Promise<number[]> {
  await using world = await startWorld({ workers: options.workers });
  const { fleet } = world;
  await using stack = new AsyncDisposableStack();
  const redis = stack.adopt(connectRedis(world.redisUrl), closeRedis);
  const ready = createKeys(world.prefix).poolReady(TEMPLATE);
  const filled = () => until(async () => (await redis.zcount(ready, "(0", "+inf")) >= POOL, "a full pool", 60_000);
  await fleet.pools.set(TEMPLATE, { min: POOL, max: POOL });
  const took: number[] = [];
  const all = options.claims + WARM_UP;
  while (took.length < all) {
    await filled();
    const made: Claimed[] = [];
    for (let at = 0; at < POOL && took.length + made.length < all; at++) made.push(await claim(fleet));
    took.push(...made.map(({ ms }) => ms));
    options.log(`${took.length} of ${all}`);
    await Promise.all(made.map((one) => useUp(fleet, one)));
  }
  return took.slice(WARM_UP);
}

interface Claimed {
  ms: number;
  sandboxId: string;
  address: string;
}

async function claim(fleet: Fleet): Promise<Claimed> {
  const begun = performance.now();
  const handle = await fleet.provision({ template: TEMPLATE, services: [{ name: "web", port: 8_000 }] });
  const { sandboxId, address, warm: isWarm } = await handle.result(PATIENCE);
  const ms = performance.now() - begun;
  if (!isWarm) throw new Error(`${sandboxId} was not served by the pool`);
  return { ms, sandboxId, address };
}

async function useUp(fleet: Fleet, { sandboxId, address }: Claimed): Promise<void> {
  const { statusCode, body } = await request(`http://${address}:${EXECD_PORT}/healthz`);
  await body.dump();
  const { exitCode } = await (await fleet.exec({ sandboxId, command: "true" })).result(PATIENCE);
  if (statusCode !== 200 || exitCode !== 0) throw new Error(`the exec daemon of ${sandboxId} does not answer`);
  await (await fleet.destroy({ sandboxId })).result(PATIENCE);
}

function toReport(took: readonly number[], { doubleClaims }: Race): WarmReport {
  return { claimMs: { p50: round(quantile(took, 0.5), 1), p99: round(quantile(took, 0.99), 1) }, doubleClaims };
}

function toText({ claimMs, doubleClaims }: WarmReport, took: readonly number[]): string {
  return `
one provision      median ${claimMs.p50} ms of ${took.length} (${spread(took, 1)}), p99 ${claimMs.p99} ms (at most 15 ms and 40 ms are promised)
double claims      ${doubleClaims} of ${RACE.claims} over ${RACE.processes} processes (0 is promised)
`;
}
