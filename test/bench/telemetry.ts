/**
 * What telemetry costs commands. Rates of a machine with two busy cores, and its processor time, differ by tens of percent from
 * one second to the next, so two runs can't be compared: a worker profiles itself instead, and what is told is the share of its
 * own work, at full load, that was telemetry's.
 */
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { closeRedis, connectRedis } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { until } from "../integration/fleet/until.ts";
import { opsUrl } from "./ops-url.ts";
import { startProgram, startWorld, TEMPLATE, type World } from "./world.ts";

const AT_ONCE = 64;
const WINDOW_MS = 4_000;
const WINDOWS = 8;
/** Until the worker's code is compiled. */
const WARM_UP = 4_000;
/** Prometheus asks every 15 s or so. */
const SCRAPE_MS = 5_000;

export interface Telemetry {
  /** Of the worker's work, by window. */
  metrics: number[];
  traces: number[];
  commands: number;
}

/** With metrics that are read, and traces as they are by default. */
export async function measureTelemetry(): Promise<Telemetry> {
  await using stack = new AsyncDisposableStack();
  const collector = stack.use(await startProgram(new URL("./collector.ts", import.meta.url), []));
  const daemon = stack.use(await startProgram(new URL("./instant-execd.ts", import.meta.url), []));
  const world = await startWorld({
    workers: 1,
    program: new URL("./profiled-worker.ts", import.meta.url),
    env: { FLEET_ROLES: "worker,ops", OPS_PORT: "0", OTEL_EXPORTER_OTLP_ENDPOINT: collector.told["url"] ?? "" },
  });
  stack.use(world);
  const { fleet, redisUrl, prefix, workerPids } = world;
  const { sandboxId } = await (await fleet.provision({ template: TEMPLATE, cores: 1 })).result({ timeoutMs: 60_000 });
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  await redis.hset(createKeys(prefix).sandbox(sandboxId), "address", daemon.told["address"] ?? "");
  stack.use(startScraping(world));
  let commands = 0;
  let isOver = false;
  const lane = async () => {
    for (; !isOver; commands++) await (await fleet.exec({ sandboxId, command: "true" })).result({ timeoutMs: 60_000 });
  };
  const working = Promise.all(Array.from({ length: AT_ONCE }, lane));
  stack.defer(async () => {
    isOver = true;
    await working;
  });
  await until(() => commands >= WARM_UP, "a warm worker", 120_000);
  const [pid = 0] = workerPids;
  commands = 0;
  const counts: Counts[] = [];
  while (counts.length < WINDOWS) {
    process.kill(pid, "SIGUSR2");
    await delay(WINDOW_MS);
    process.kill(pid, "SIGUSR2");
    const before = counts.length;
    counts.splice(0, before, ...(await until(() => readCounts(world, before + 1), "a profile", 30_000)));
  }
  const isTraced = Number(await (await fetch(collector.told["url"] ?? "")).text()) > 0;
  if (!isTraced) throw new Error("the worker has sent no traces");
  return {
    metrics: counts.map(({ metrics, samples }) => metrics / samples),
    traces: counts.map(({ traces, samples }) => traces / samples),
    commands,
  };
}

const Counts = z.object({ samples: z.number(), metrics: z.number(), traces: z.number() });
type Counts = z.output<typeof Counts>;

/** What the worker has found out so far; null while that are fewer. */
async function readCounts({ workerLog }: World, count: number): Promise<Counts[] | null> {
  const lines = (await workerLog(0)).matchAll(/^\{"profile":(.*)\}$/gm);
  const found = [...lines].map(([, json = ""]) => Counts.parse(JSON.parse(json)));
  return found.length < count ? null : found;
}

function startScraping(world: World): AsyncDisposable {
  const stop = new AbortController();
  const reading = (async () => {
    const url = await opsUrl(world);
    while (!stop.signal.aborted) {
      await (await fetch(`${url}/metrics`)).text();
      await delay(SCRAPE_MS, undefined, { signal: stop.signal }).catch(() => {});
    }
  })();
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await reading;
    },
  };
}
