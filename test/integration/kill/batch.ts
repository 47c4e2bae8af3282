/** Many fleets side by side in one worker process, each held at a boundary of its own, and workers here to take them over. */
import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { createFleet, type Handle, type JobName } from "../../../producers/index.ts";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { POOL_TEAM } from "../../../shared/ids.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../../shared/redis/connect.ts";
import { createKeys } from "../../../shared/state/keys.ts";
import { startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { startPve, type Timings } from "../../pve/index.ts";
import type { StorageSpec } from "../../pve/options.ts";
import { FAST } from "../fleet/harness.ts";
import { until } from "../fleet/until.ts";
import type { DoomedCommand, DoomedFleet, DoomedMessage } from "./doomed-process.ts";
import type { Boundary } from "./edges.ts";
import { KILLED, type Killed, type KillFleet } from "./kill-fleet.ts";

const DOOMED = fileURLToPath(new URL("./doomed-process.ts", import.meta.url));
const RANGE = 20;
/** Templates are on the first; only what goes to another needs the second. */
const NODES = ["pve1", "pve2"];
const FLEETS_A_CLUSTER = 6;

/** Nothing is shared but archives. */
const FOR_ARCHIVES: StorageSpec[] = [
  { name: "local-lvm", type: "lvmthin" },
  { name: "nas", type: "dir", shared: true, content: "backup" },
];

/** PVE has the request and executes it when everything is over. */
export function lateRequest({ template, vmids }: KillFleet, edge: string) {
  const [method = "", what = ""] = edge.split(" ");
  const vmid = what === "clone" ? String(template.vmid) : `${String(vmids.first).slice(0, -2)}\\d\\d`;
  return { kind: "hang" as const, method, path: `/lxc/${vmid}${what === "container" ? "" : `/${what}`}$` };
}

const PATIENCE = { timeoutMs: 30_000 };

export interface Begun {
  handle: Handle<JobName>;
  /** The sandbox that it is about or copies, which must be whole afterwards. */
  source?: string;
}

/** Sends the operation that is to be killed; `armed` is called right before. */
export async function begin(one: KillFleet, redis: RedisConnection, armed = () => {}): Promise<Begun> {
  const { fleet, killed, template, prefix } = one;
  const pool = { min: 1, max: 1 };
  switch (killed) {
    case "provision":
      armed();
      return { handle: await fleet.provision({ template: template.name }) };
    case "build": {
      const from = { template: template.name };
      return { handle: await fleet.build({ name: "built", version: "1", from, setup: ["true"], test: "true" }) };
    }
    case "replicate":
    case "archive":
      return { handle: await fleet.replicate({ template: template.name, node: "pve2" }) };
    case "fill": {
      await fleet.pools.set(template.name, pool);
      const [member] = await until(async () => {
        const members = await fleet.sandboxes.list({ team: POOL_TEAM });
        return members.length > 0 && members;
      }, "a member in the making");
      if (!member) throw new Error("no member");
      return { handle: await fleet.operation(member.operation) };
    }
    case "claim": {
      await fleet.pools.set(template.name, pool);
      const keys = createKeys(prefix);
      await until(async () => (await redis.zcard(keys.poolReady(template.name))) > 0, "a member", 60_000);
      // None is made in its place.
      await fleet.pools.set(template.name, { min: 0, max: 1 });
      return { handle: await fleet.provision({ template: template.name }) };
    }
    default:
      return beginOn(one, armed);
  }
}

/** What needs a sandbox. */
async function beginOn({ fleet, killed, template }: KillFleet, armed: () => void): Promise<Begun> {
  const { sandboxId, ...provision } = await fleet.provision({ template: template.name });
  await provision.result(PATIENCE);
  if (killed === "destroy") {
    armed();
    return { handle: await fleet.destroy({ sandboxId }) };
  }
  if (killed === "migrate") return { handle: await fleet.migrate({ sandboxId, target: "pve2" }) };
  if (killed === "template") return { handle: await fleet.template({ sandboxId, name: "made" }), source: sandboxId };
  if (killed === "tidy" || killed === "untake") {
    const branch = await fleet.branch({ sandboxId, count: 1 });
    for await (const { operationId } of branch.results())
      if (operationId !== undefined) return { handle: await fleet.operation(operationId), source: sandboxId };
    throw new Error("no copy");
  }
  const { snapshotId } = await (await fleet.snapshot({ sandboxId })).result(PATIENCE);
  const again = {
    snapshot: () => fleet.snapshot({ sandboxId, keepLast: 1 }),
    restore: () => fleet.restore({ sandboxId, snapshotId }),
    copy: () => fleet.provision({ template: snapshotId }),
  };
  if (!(killed in again)) throw new Error(`${killed} is not begun here`);
  return { handle: await again[killed as keyof typeof again](), source: sandboxId }; // as just seen
}

/** Jobs that are waited for or worked on in any queue but the clockwork's. */
export async function activeJobs(redis: RedisConnection, prefix: string): Promise<number> {
  const queues = ["place", "warm", ...NODES.flatMap((node) => [`node-${node}`, `exec-${node}`])].map(
    (name) => `${prefix}:${name}`,
  );
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

export interface Batch extends AsyncDisposable {
  readonly redis: RedisConnection;
  readonly fleets: readonly KillFleet[];
  readonly edges: string[];
  readonly held: ReadonlySet<string>;
  /** What runs did that were held and released. */
  readonly acted: readonly { name: string; edge: string }[];
  /** Fleets whose run has ended that was held and released. */
  readonly over: ReadonlySet<string>;
  /** To the process with all its fleets. */
  signal(signal: "SIGSTOP" | "SIGCONT"): void;
  /** Lets the held runs of these fleets go on. */
  release(names: readonly string[]): void;
  /** SIGKILL to the process with all its fleets. */
  kill(): Promise<void>;
}

export async function startBatch(
  redisUrl: string,
  plans: readonly { killed: Killed; hold: Boundary | null }[],
  { scope, timings: more }: { scope: "fleet" | "run"; timings?: Partial<Timings> },
): Promise<Batch> {
  await using stack = new AsyncDisposableStack();
  const templates = plans.map((_, at) => ({ name: `base-${at}`, vmid: 9_001 + at, node: "pve1" }));
  const isAny = (...kinds: Killed[]) => plans.some(({ killed }) => kinds.includes(killed));
  const names = isAny("migrate", "replicate", "archive") ? NODES : NODES.slice(0, 1);
  const storages = isAny("archive") ? { storages: FOR_ARCHIVES } : {};
  const nodes = names.map((name) => ({ name, memoryMib: 1_048_576, ...storages }));
  const timings = { ...FAST, nodeParallel: 1_000, ...more };
  // Each fleet reads every template of its cluster, so that one cluster for all would be asked with the square of them.
  const clusters = await Promise.all(
    plans.flatMap((_, at) =>
      at % FLEETS_A_CLUSTER > 0
        ? []
        : [startPve({ nodes, templates: templates.slice(at, at + FLEETS_A_CLUSTER), timings })],
    ),
  );
  for (const cluster of clusters) stack.use(cluster);
  const redis = stack.adopt(connectRedis(redisUrl), closeRedis);
  const id = randomBytes(4).toString("hex");
  const secretKey = randomBytes(32).toString("hex");
  const fleets = plans.map(({ killed }, at): KillFleet => {
    const prefix = `{kill-${id}-${at}}`;
    const pve = clusters[Math.floor(at / FLEETS_A_CLUSTER)];
    if (!pve) throw new Error("no cluster");
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
    return { pve, env, prefix, killed, template: templates[at] ?? { name: "", vmid: 0 }, vmids, fleet };
  });
  stack.defer(() => removeKeys(redis, `{kill-${id}-`));
  // These fleets share a token, so each would take the others' clones for tasks of its own that Redis has forgotten.
  const [, server = ""] = /run_id:(\w+)/.exec(await redis.info("server")) ?? [];
  for (const { prefix } of fleets)
    await redis.hset(createKeys(prefix).adopted, ...names.flatMap((node) => [node, server]));

  const edges: string[] = [];
  const held = new Set<string>();
  const over = new Set<string>();
  const acted: { name: string; edge: string }[] = [];
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
    else if (message.type === "over") over.add(message.name);
    else if (message.type === "acted") acted.push(message);
    else edges.push(message.edge);
  });
  const doomed = fleets.map(({ env, prefix, killed }, at): DoomedFleet => {
    return { name: prefix, env, nth: KILLED[killed], hold: plans[at]?.hold ?? null, scope };
  });
  const say = (command: DoomedCommand) => child.send(command);
  say({ type: "start", fleets: doomed });
  await ready.promise;
  const resources = stack.move();
  return {
    redis,
    fleets,
    edges,
    held,
    over,
    acted,
    kill,
    signal: (signal) => void child.kill(signal),
    release: (names) => void say({ type: "release", names: [...names] }),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
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

export async function startSurvivors(fleets: readonly KillFleet[]): Promise<AsyncDisposable> {
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
