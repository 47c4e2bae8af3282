/** `npm run soak`: a load under which retention passes many times over; what is kept must not grow. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import { createFleet } from "../../producers/index.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { createKeys } from "../../shared/state/keys.ts";
import { until } from "../integration/fleet/until.ts";
import { startWorkerProcess } from "../integration/fleet/worker-process.ts";
import { startPve } from "../pve/index.ts";
import { startRedis } from "../redis.ts";
import { startSshNodes } from "../ssh/nodes.ts";
import { growth, isFlat, readSample, type Sample } from "./families.ts";
import { startTraffic } from "./traffic.ts";

const HELP = `npm run soak -- [options]

  Starts Redis, a stand-in for Proxmox VE and a worker that keeps what has ended for 15 s, and lets callers of ever new teams use
  everything. After a warm-up it samples what is in Redis, by kind of key, and the worker's memory, and fits a line.

  --seconds N      how long it is measured (120)
  --warm-up N      before that (60)
  --callers N      at once (8)
  --json           the samples as JSON
  --help

  Exit code 0: along that line nothing grew by more than 10 % of its mean or 64 KiB, nor the worker by more than 15 %. 1: something did.
`;
const KEPT_SECONDS = 15;
const EVENTS_KEPT = 100_000;
/** As `npm run worker` has it. */
const HEAP = "--max-semi-space-size=16 --max-old-space-size=768";
/** Jobs and their events are bounded by their number in each queue, which some reach only after hours. */
const BOUNDED = /^(a job|jobs completed|jobs failed|jobs events)$/;
const SAMPLE_MS = 5_000;
const REDIS = { share: 0.1, floor: 65_536 };
const RSS = { share: 0.15, floor: 16 * 1_048_576 };

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "120" },
    "warm-up": { type: "string", default: "60" },
    callers: { type: "string", default: "8" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) process.stdout.write(HELP);
else process.exitCode = await soak();

async function soak(): Promise<number> {
  await using stack = new AsyncDisposableStack();
  const server = stack.use(await startRedis({ engine: "process" }));
  const templates = [1, 2, 3, 4].map((copy) => ({
    name: "cmux-base",
    node: `pve${(copy % 2) + 1}`,
    vmid: 9_000 + copy,
  }));
  const pve = stack.use(await startPve({ nodes: 2, templates, timings: { timeScale: 0.02, apiScale: 0 } }));
  const ssh = stack.use(await startSshNodes(pve, {}));
  const receiver = await startReceiver(stack);
  const prefix = `{soak-${randomBytes(4).toString("hex")}}`;
  const secretKey = randomBytes(32).toString("hex");
  const redis = stack.adopt(connectRedis(server.url), closeRedis);
  await fillEvents(redis, createKeys(prefix).events);
  const worker = stack.use(
    await startWorkerProcess({
      REDIS_URL: server.url,
      FLEET_PREFIX: prefix,
      FLEET_SECRET_KEY: secretKey,
      FLEET_ROLES: "worker",
      FLEET_RETENTION_HOURS: String(KEPT_SECONDS / 3_600),
      FLEET_NODE_SLOTS: "8",
      PVE_API_URL: pve.url,
      PVE_API_TOKEN: pve.token,
      PVE_TLS_FINGERPRINT: pve.fingerprint,
      PVE_PUBLIC_DOMAIN: "sandbox.test",
      SANDBOX_CIDRS: "127.0.0.0/8",
      NODE_OPTIONS: HEAP,
      FLEET_WEBHOOKS: JSON.stringify([receiver]),
      ...ssh.env,
    }),
  );
  const fleet = stack.use(createFleet({ redis: server.url, prefix, secretKey }));
  await until(
    () =>
      fleet.pools.set("cmux-base", { min: 2, max: 4 }).then(
        () => true,
        () => false,
      ),
    "a pool",
    30_000,
  );
  const stop = new AbortController();
  const traffic = startTraffic(fleet, Number(values.callers), stop.signal);
  const failed = traffic.over.then(
    () => null,
    (error: unknown) => error,
  );
  await pause(Number(values["warm-up"]) * 1_000);
  const samples: { kept: Sample; rss: number }[] = [];
  const begun = performance.now();
  while (performance.now() - begun < Number(values.seconds) * 1_000) {
    samples.push({ kept: await readSample(redis, prefix), rss: readRss(worker.pid) });
    const error = await Promise.race([failed, pause(SAMPLE_MS, undefined)]);
    if (error) throw error;
  }
  stop.abort();
  const error = await failed;
  if (error) throw error;
  return report(samples, traffic.operations());
}

/** A target that takes every message. */
async function startReceiver(stack: AsyncDisposableStack) {
  const server = createServer(
    (request, response) => void request.resume().on("end", () => response.writeHead(204).end()),
  );
  await once(server.listen(0, "127.0.0.1"), "listening");
  stack.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo; // of a server that listens on a port
  const secrets = [`whsec_${randomBytes(32).toString("base64")}`];
  return { name: "soak", url: `http://127.0.0.1:${port}/`, secrets, allowPrivate: ["127.0.0.0/8"] };
}

/** As if the fleet had run for long: the stream is at its bound. Numbered as the fleet numbers them. */
async function fillEvents(redis: RedisConnection, events: string): Promise<void> {
  for (let at = 0; at < EVENTS_KEPT; at += 1_000) {
    const pipeline = redis.pipeline();
    for (let n = at + 1; n <= at + 1_000; n++)
      pipeline.xadd(
        events,
        `${1_000}-${n}`,
        "type",
        "operation.succeeded",
        "at",
        Date.now(),
        "operation",
        "op_0000000000000000",
        "sandbox",
        "sbx_0000000000000000",
        "team",
        "before",
        "data",
        "{}",
      );
    await pipeline.exec();
  }
}

function readRss(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1_024;
}

function report(samples: readonly { kept: Sample; rss: number }[], operations: number): number {
  const names = [...new Set(samples.flatMap(({ kept }) => [...kept.keys()]))];
  const ofAll = (kept: Sample) =>
    [...kept].reduce((sum, [name, { bytes }]) => sum + (BOUNDED.test(name) ? 0 : bytes), 0);
  const rows = [
    ...names.map((name) => ({
      name,
      count: samples.at(-1)?.kept.get(name)?.count ?? 0,
      bytes: samples.map(({ kept }) => kept.get(name)?.bytes ?? 0),
      limit: REDIS,
    })),
    { name: "all but jobs", count: 0, bytes: samples.map(({ kept }) => ofAll(kept)), limit: REDIS },
    { name: "the worker's memory", count: 0, bytes: samples.map(({ rss }) => rss), limit: RSS },
  ].map((row) => ({
    ...row,
    last: row.bytes.at(-1) ?? 0,
    grew: Math.round(growth(row.bytes)),
    flat: BOUNDED.test(row.name) || isFlat(row.bytes, row.limit),
  }));
  rows.sort((a, b) => a.last - b.last);
  if (values.json) process.stdout.write(`${JSON.stringify({ operations, rows })}\n`);
  else {
    for (const { name, count, last, grew, flat } of rows)
      process.stdout.write(
        `${name.padEnd(24)}${String(count || "").padStart(8)}${String(last).padStart(12)} B ${grew >= 0 ? "+" : ""}${grew}${flat ? "" : "  GROWS"}\n`,
      );
    process.stdout.write(`${operations} operations, ${samples.length} samples\n`);
  }
  return rows.every(({ flat }) => flat) ? 0 : 1;
}
