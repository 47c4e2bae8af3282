/**
 * A whole fleet for one test file: Redis with a user a role, the stand-in PVE, workers and a producer, checked for leaks
 * when it goes.
 */
import { randomBytes } from "node:crypto";
import {
  createFleet,
  type Fleet,
  type FleetOptions,
  type Handle,
  type JobInput,
  type JobMethods,
  type JobName,
} from "../../../producers/index.ts";
import { loadWorkerConfig, type WorkerConfig } from "../../../shared/config.ts";
import { FleetError, type FleetErrorCode } from "../../../shared/errors.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../../shared/redis/connect.ts";
import { createKeys, type Keys } from "../../../shared/state/keys.ts";
import { PRIVILEGES } from "../../../workers/doctor/privileges.ts";
import { type FleetWorkers, startFleetWorkers } from "../../../workers/fleet.ts";
import { createLogger } from "../../../workers/log.ts";
import { type Pve, type PveOptions, startPve, type Timings } from "../../pve/index.ts";
import { type RedisOptions, type RedisServer, startRedis } from "../../redis.ts";
import { type SshNodes, type SshNodesOptions, startSshNodes } from "../../ssh/nodes.ts";
import { leaksInProcess, leaksInRedis, leftConnections, openResources } from "./leaks.ts";
import { until } from "./until.ts";
import { startWorkerProcess, type WorkerProcess } from "./worker-process.ts";

/** A tenth of PVE's task times and no API latency: for all tests that do not measure time. */
export const FAST: Partial<Timings> = { timeScale: 0.1, apiScale: 0 };

export interface BedOptions {
  pve?: PveOptions;
  redis?: RedisOptions;
  /** An sshd for each node, which the workers know. */
  ssh?: SshNodesOptions;
  /** The workers' token: root's (default), or one with what docs/operations.md says that the work takes, and no more. */
  rights?: "all" | "least";
  /** More or other variables of the workers. */
  env?: Record<string, string>;
  /** Workers in this process (default), or only those that the test starts. */
  workers?: "here" | "none";
}

export interface Bed {
  readonly pve: Pve;
  readonly ssh: SshNodes | undefined;
  readonly redisServer: RedisServer;
  /** For looking only. */
  readonly redis: RedisConnection;
  readonly keys: Keys;
  readonly env: Record<string, string>;
  readonly fleet: Fleet;
  readonly workers: FleetWorkers | null;
  /** Another client; closed with the bed. */
  client(options?: Partial<FleetOptions>): Fleet;
  config(env?: Record<string, string>): WorkerConfig;
  /** Another worker in this process; closed with the bed. */
  startWorkers(env?: Record<string, string>): Promise<FleetWorkers>;
  /** A worker process, once it takes jobs; killed with the bed. */
  startProcess(env?: Record<string, string>): Promise<WorkerProcess>;
  /** Waits for the last operation, compares the records with PVE's truth, closes all and throws what was left behind. */
  close(): Promise<void>;
}

export async function startBed(options: BedOptions = {}): Promise<Bed> {
  const before = openResources();
  const stack = new AsyncDisposableStack();
  try {
    const redisServer = stack.use(await startRedis(options.redis));
    const pve = stack.use(await startPve({ ...options.pve, timings: { ...FAST, ...options.pve?.timings } }));
    const ssh = options.ssh && stack.use(await startSshNodes(pve, options.ssh));
    const prefix = `{test-${randomBytes(6).toString("hex")}}`;
    const env = {
      REDIS_URL: redisServer.urlFor("worker"),
      FLEET_PREFIX: prefix,
      PVE_API_URL: pve.url,
      PVE_API_TOKEN: options.rights === "least" ? leastToken(pve) : pve.token,
      PVE_TLS_FINGERPRINT: pve.fingerprint,
      FLEET_SECRET_KEY: randomBytes(32).toString("hex"),
      SANDBOX_CIDRS: "127.0.0.0/8",
      FLEET_ROLES: "worker",
      LOG_LEVEL: process.env["TEST_LOG_LEVEL"] ?? "silent",
      ...ssh?.env,
      ...options.env,
    };
    const redis = stack.adopt(connectRedis(redisServer.url), closeRedis);
    const keys = createKeys(prefix);
    // What talks to the fleet goes before the fleet's own servers, and the look at what is left comes in between.
    const users = new AsyncDisposableStack();
    const config: Bed["config"] = (more = {}) => loadWorkerConfig({ ...env, ...more });
    const startWorkers: Bed["startWorkers"] = async (more) => {
      const settings = config(more);
      return users.use(await startFleetWorkers(settings, createLogger(settings.LOG_LEVEL)));
    };
    const client: Bed["client"] = (more = {}) =>
      users.use(
        createFleet({ redis: redisServer.urlFor("producer"), prefix, secretKey: env.FLEET_SECRET_KEY, ...more }),
      );
    stack.use(users);
    const workers = options.workers === "none" ? null : await startWorkers();
    return {
      pve,
      ssh,
      redisServer,
      redis,
      keys,
      env,
      fleet: client(),
      workers,
      client,
      config,
      startWorkers,
      startProcess: async (more) => users.use(await startWorkerProcess({ ...env, ...more })),
      async close() {
        const leaks: string[] = [];
        try {
          leaks.push(...(await leaksInRedis(redis, keys, pve)));
          await users.disposeAsync();
          leaks.push(...(await leftConnections(redis)));
        } finally {
          await stack.disposeAsync();
        }
        leaks.push(...(await leaksInProcess(before)));
        if (leaks.length > 0) throw new Error(`left behind:\n${leaks.join("\n")}`);
      },
    };
  } catch (error) {
    await stack.disposeAsync();
    throw error;
  }
}

const leastToken = (pve: Pve): string =>
  pve.addToken({ user: "fleet@pve", id: "bed", privileges: { "/": PRIVILEGES.map(({ name }) => name) } });

/** The error that a promise is rejected with, which must be the product's own and of this code. */
export async function failure(promise: Promise<unknown>, code: FleetErrorCode): Promise<FleetError> {
  const outcome = await promise.then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  );
  if ("value" in outcome) throw new Error(`expected ${code}, got the result ${JSON.stringify(outcome.value)}`);
  const { error } = outcome;
  if (!(error instanceof FleetError)) throw error;
  if (error.code !== code) throw new Error(`expected ${code}, got ${error.message}`, { cause: error });
  return error;
}

/** A deadline for the stand-in's waits. */
export const within = (ms = 60_000): AbortSignal => AbortSignal.timeout(ms);

const PATIENCE = { timeoutMs: 60_000 };

/** A running sandbox of the default template. */
export async function provisionOne(fleet: Fleet, input: Partial<JobInput<"provision">> = {}) {
  const handle = await fleet.provision({ template: "cmux-base", ...input });
  return handle.result(PATIENCE);
}

/** Sends one operation and waits for its result. */
export async function run<N extends keyof JobMethods>(fleet: Fleet, kind: N, input: JobInput<N>) {
  const methods: JobMethods = fleet;
  const handle = await methods[kind](input);
  return handle.result(PATIENCE);
}

/** Waits until a run of the operation has failed and it waits for its next one. */
export async function firstFailure<N extends JobName>(handle: Handle<N>): Promise<FleetErrorCode> {
  const status = await until(async () => {
    const view = await handle.status();
    return view.attempts > 0 && view.lastError ? view : null;
  }, `a failed run of ${handle.id}`);
  return status.lastError?.code ?? "internal";
}

/** Rewrites an open operation's record as if it had tried all but one times: its next failure is its last. */
export async function useUpAttempts(bed: Bed, handle: Handle<JobName>, attempts: number): Promise<void> {
  await firstFailure(handle);
  await bed.redis.hset(bed.keys.operation(handle.id), "attempts", attempts - 1);
}

/** Rewrites an open operation's record as if it had begun long ago: its next run is out of time. */
export async function useUpTime(bed: Bed, handle: Handle<JobName>, timeoutMs: number): Promise<void> {
  await firstFailure(handle);
  await bed.redis.hset(bed.keys.operation(handle.id), "startedAt", Date.now() - timeoutMs - 1);
}

export { until };

export async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const seen: T[] = [];
  for await (const item of items) seen.push(item);
  return seen;
}

/** The stand-in's truth about a sandbox's container. */
export function containerOf(bed: Bed, vmid: number) {
  return bed.pve.containers().find((one) => one.vmid === vmid);
}
