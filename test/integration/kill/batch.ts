/** Many fleets side by side, each killed at a boundary of its own, then taken over by workers of this process. */
import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { createFleet, type Handle, type JobName } from "../../../producers/index.ts";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../../shared/redis/connect.ts";
import { createKeys } from "../../../shared/state/keys.ts";
import { startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { type FaultHandle, type Pve, startPve } from "../../pve/index.ts";
import { FAST } from "../fleet/harness.ts";
import { until } from "../fleet/until.ts";
import type { DoomedFleet, DoomedMessage } from "./doomed-process.ts";
import type { Boundary } from "./edges.ts";
import { isOf, type Killed, type KillFleet } from "./kill-fleet.ts";
import { brokenPromises } from "./promise.ts";

export interface KillCase {
  killed: Killed;
  boundary: Boundary;
}

const DOOMED = fileURLToPath(new URL("./doomed-process.ts", import.meta.url));
/** From the kill to the end: a lock of 6 s, up to two stalled checks, a sweep, and what is left to do. */
const RECOVERY_MS = 40_000;
const RANGE = 20;

/** The edges of an operation that nothing happens to, in their order. */
export async function listEdges(redisUrl: string, killed: Killed): Promise<string[]> {
  await using batch = await startBatch(redisUrl, [{ killed, hold: null }]);
  const [one] = batch.fleets;
  if (!one) throw new Error("no fleet");
  await (await begin(one)).result({ timeoutMs: 20_000 });
  // BullMQ's own end of the job comes after ours.
  await until(() => batch.edges.some((edge) => edge.startsWith("moveToFinished")) && batch.edges, "the job's end");
  await until(async () => (await activeJobs(batch.redis, one.prefix)) === 0, "the job's end");
  return batch.edges;
}

/** What is wrong after the kills, with the boundary that it came from; nothing is what should be found. */
export async function killAt(redisUrl: string, cases: readonly KillCase[]): Promise<string[]> {
  await using batch = await startBatch(
    redisUrl,
    cases.map(({ killed, boundary }) => ({ killed, hold: boundary })),
  );
  const { pve, redis } = batch;
  const late = new Map<KillFleet, FaultHandle>();
  const handles = await Promise.all(
    batch.fleets.map(async (one, at) => {
      const boundary = cases[at]?.boundary;
      return begin(one, () => {
        if (boundary?.moment === "sent") late.set(one, pve.faults.request(lateRequest(one, boundary.edge)));
      });
    }),
  );
  await until(() => batch.held.size === cases.length, "every fleet at its boundary", 30_000).catch((error: unknown) => {
    const missing = batch.fleets.flatMap(({ prefix }, at) => (batch.held.has(prefix) ? [] : [toText(cases[at])]));
    throw new Error(`never reached: ${missing.join(", ")}`, { cause: error });
  });
  await until(() => [...late.values()].every(({ hits }) => hits === 1), "every late request at PVE");
  await batch.kill();
  await using _survivors = await startSurvivors(batch.fleets);
  const found = await Promise.all(
    batch.fleets.map(async (one, at) => {
      const handle = handles[at];
      if (!handle) return [];
      const result = await handle.result({ timeoutMs: RECOVERY_MS }).then(
        (value) => ({ value }),
        (error: unknown) => ({ error: String(error) }),
      );
      if ("error" in result) return [`${toText(cases[at])}: ended with ${result.error}`];
      await until(async () => (await activeJobs(redis, one.prefix)) === 0, `the jobs of ${one.prefix}`, RECOVERY_MS);
      const held = late.get(one);
      if (held) {
        const isLate = pve.waitForRequest(
          ({ fault, path }) => fault === "hang" && isOf(one, path),
          AbortSignal.timeout(5_000),
        );
        held.release();
        await isLate;
      }
      await until(() => pve.tasks().every(({ endedAt }) => endedAt !== undefined), "quiet at PVE").catch(() => {});
      const problems = await brokenPromises({ one, handle, redis, pve, late: held !== undefined });
      return problems.map((problem) => `${toText(cases[at])}: ${problem}`);
    }),
  );
  return found.flat();
}

const toText = (one: KillCase | undefined): string =>
  one ? `${one.killed} killed ${one.boundary.moment} ${one.boundary.edge}` : "";

/** PVE has the request and executes it when everything is over. */
function lateRequest({ template, vmids }: KillFleet, edge: string) {
  const [method = "", what = ""] = edge.split(" ");
  const vmid = what === "clone" ? String(template.vmid) : `${String(vmids.first).slice(0, -2)}\\d\\d`;
  return { kind: "hang" as const, method, path: `/lxc/${vmid}${what === "container" ? "" : `/${what}`}$` };
}

/** Sends the operation that is to be killed; `armed` is called right before. */
async function begin({ fleet, killed, template }: KillFleet, armed = () => {}): Promise<Handle<JobName>> {
  if (killed === "provision") {
    armed();
    return fleet.provision({ template: template.name });
  }
  const provision = await fleet.provision({ template: template.name });
  await provision.result({ timeoutMs: 30_000 });
  armed();
  return fleet.destroy({ sandboxId: provision.sandboxId });
}

/** Jobs that are waited for or worked on in any queue but the clockwork's. */
async function activeJobs(redis: RedisConnection, prefix: string): Promise<number> {
  const queues = ["place", "node-pve1", "exec-pve1"].map((name) => `${prefix}:${name}`);
  const counts = await Promise.all(
    queues.flatMap((queue) => [
      redis.llen(`${queue}:active`),
      redis.llen(`${queue}:wait`),
      redis.zcard(`${queue}:prioritized`),
      redis.zcard(`${queue}:delayed`),
    ]),
  );
  return counts.reduce((sum, count) => sum + count, 0);
}

interface Batch extends AsyncDisposable {
  readonly pve: Pve;
  readonly redis: RedisConnection;
  readonly fleets: readonly KillFleet[];
  readonly edges: string[];
  readonly held: ReadonlySet<string>;
  /** SIGKILL to the process with all its fleets. */
  kill(): Promise<void>;
}

async function startBatch(
  redisUrl: string,
  plans: readonly { killed: Killed; hold: Boundary | null }[],
): Promise<Batch> {
  await using stack = new AsyncDisposableStack();
  const templates = plans.map((_, at) => ({ name: `base-${at}`, vmid: 9_001 + at }));
  const node = { name: "pve1", memoryMib: 1_048_576 };
  const timings = { ...FAST, nodeParallel: 1_000 };
  const pve = stack.use(await startPve({ nodes: [node], templates, timings }));
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  const id = randomBytes(4).toString("hex");
  const secretKey = randomBytes(32).toString("hex");
  const fleets = plans.map(({ killed }, at): KillFleet => {
    const prefix = `{kill-${id}-${at}}`;
    const vmids = { first: 100_000 + 100 * at, last: 100_000 + 100 * at + RANGE };
    const env = {
      REDIS_URL: redisUrl,
      FLEET_PREFIX: prefix,
      FLEET_SECRET_KEY: secretKey,
      FLEET_ROLES: "worker",
      PVE_API_URL: pve.url,
      PVE_API_TOKEN: pve.token,
      PVE_TLS_FINGERPRINT: pve.fingerprint,
      PVE_VMID_RANGE: `${vmids.first}-${vmids.last}`,
      SANDBOX_CIDRS: "127.0.0.0/8",
      LOG_LEVEL: process.env["TEST_LOG_LEVEL"] ?? "silent",
    };
    const fleet = stack.use(createFleet({ redis: redisUrl, prefix, secretKey }));
    return { env, prefix, killed, template: templates[at] ?? { name: "", vmid: 0 }, vmids, fleet };
  });
  stack.defer(() => removeKeys(redis, `{kill-${id}-`));
  // These fleets share a token, so each would take the others' clones for tasks of its own that Redis has forgotten.
  const [, server = ""] = /run_id:(\w+)/.exec(await redis.info("server")) ?? [];
  for (const { prefix } of fleets) await redis.hset(createKeys(prefix).adopted, "pve1", server);

  const edges: string[] = [];
  const held = new Set<string>();
  const ready = Promise.withResolvers<void>();
  const child = fork(DOOMED, [], {
    env: { PATH: process.env["PATH"] ?? "" },
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const kill = callOnce(() => killChild(child));
  stack.defer(kill);
  child.once("exit", () => ready.reject(new Error("the doomed process ended by itself")));
  child.on("message", (message: DoomedMessage) => {
    if (message.type === "ready") ready.resolve();
    else if (message.type === "held") held.add(message.name);
    else edges.push(message.edge);
  });
  const doomed = fleets.map(({ env, prefix, killed }, at): DoomedFleet => {
    return { name: prefix, env, nth: killed === "provision" ? 1 : 2, hold: plans[at]?.hold ?? null };
  });
  child.send(doomed);
  await ready.promise;
  const resources = stack.move();
  return { pve, redis, fleets, edges, held, kill, [Symbol.asyncDispose]: () => resources.disposeAsync() };
}

function callOnce(run: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> | undefined;
  return () => (running ??= run());
}

async function killChild(child: ChildProcess): Promise<void> {
  const gone = once(child, "exit");
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await gone;
}

async function startSurvivors(fleets: readonly KillFleet[]): Promise<AsyncDisposable> {
  const survivors = await Promise.all(
    fleets.map(({ env }) => {
      const config = loadWorkerConfig(env);
      return startFleetWorkers(config, createLogger(config.LOG_LEVEL));
    }),
  );
  return {
    async [Symbol.asyncDispose]() {
      await Promise.all(survivors.map((one) => one.close()));
    },
  };
}

async function removeKeys(redis: RedisConnection, prefix: string): Promise<void> {
  const keys = await redis.keys(`${prefix}*`);
  if (keys.length > 0) await redis.unlink(...keys);
}
