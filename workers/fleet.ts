/** The worker side, wired: connections, clients, queues and their workers, clockwork. The one place where it is all put together. */
import { setTimeout as delay } from "node:timers/promises";
import type { Worker } from "bullmq";
import type { Logger } from "pino";
import { retentionSecOf, type WorkerConfig } from "../shared/config.ts";
import { FleetError, isAboutAccess, toFleetError } from "../shared/errors.ts";
import { NodeName } from "../shared/ids.ts";
import { createQueues, execQueue, nodeQueue, PLACE, WARM } from "../shared/queues.ts";
import { Channels } from "../shared/redis/channels.ts";
import { closeRedis, connectRedis } from "../shared/redis/connect.ts";
import { createBatchStore } from "../shared/state/batches.ts";
import { createContentStore } from "../shared/state/contents.ts";
import type { Inventory } from "../shared/state/inventory.ts";
import { createKeys } from "../shared/state/keys.ts";
import { createNodeStateStore } from "../shared/state/nodes.ts";
import { createOperationStore } from "../shared/state/operations.ts";
import { createPools } from "../shared/state/pools.ts";
import { createQuotas } from "../shared/state/quotas.ts";
import { createSecretStore } from "../shared/state/secrets.ts";
import { createShellInputs } from "../shared/state/shell-input.ts";
import { createSlots, slotOf } from "../shared/state/slots.ts";
import { createStrays } from "../shared/state/strays.ts";
import { publishSettings } from "../shared/state/ttl.ts";
import { addPastSpan, SpanKind } from "../shared/trace.ts";
import type { WorkerContext } from "./context.ts";
import { startAborts } from "./control/aborts.ts";
import { settleBatch } from "./control/batches.ts";
import { assertNodeLimits, assertPlaceLimit, startClockwork } from "./control/clockwork.ts";
import { startExpiry } from "./control/expire.ts";
import { createExecd } from "./exec/execd.ts";
import { handlerOf } from "./handlers/index.ts";
import { createCollector } from "./inventory/collect.ts";
import { createInventorySource, type LiveInventory } from "./inventory/source.ts";
import { createMetrics, type Metrics } from "./metrics.ts";
import { startNodeGuard } from "./nodes/guard.ts";
import { answers } from "./nodes/probe.ts";
import { startOwnMachines } from "./own-machines.ts";
import { toLimits } from "./placement/limits.ts";
import { createPveApi } from "./pve/api.ts";
import { createPveHttp, type RequestReport } from "./pve/http.ts";
import { toPveTarget } from "./pve/target.ts";
import { createTaskWatcher } from "./pve/task-watcher.ts";
import { startOperationWorker } from "./run/operation-worker.ts";
import type { LiveRuns } from "./run/process-operation.ts";
import { createAddressOf } from "./ssh/node-address.ts";
import { createNodeShell } from "./ssh/node-shell.ts";
import { startTraces } from "./traces.ts";
import { startWake } from "./wake.ts";
import { startWebhooks } from "./webhooks/webhooks.ts";

export interface FleetWorkers extends AsyncDisposable {
  readonly context: WorkerContext;
  /** Takes no new jobs, waits for the running ones up to FLEET_SHUTDOWN_SECONDS, hands the rest back, closes everything. */
  close(): Promise<void>;
}

/** Starts taking jobs. Throws when Redis or PVE can't be used as configured: wrong token, untrusted certificate, no answer. */
export async function startFleetWorkers(config: WorkerConfig, log: Logger): Promise<FleetWorkers> {
  await using stack = new AsyncDisposableStack();
  const traces = stack.use(await startTraces(config, log));
  const redis = stack.adopt(connectRedis(config.REDIS_URL), closeRedis);
  redis.on("error", (error) => log.warn({ err: error }, "redis connection"));
  const keys = createKeys(config.FLEET_PREFIX);
  const metrics = createMetrics();
  const subscriber = connectRedis(config.REDIS_URL);
  subscriber.on("error", (error) => log.warn({ err: error }, "redis connection"));
  const wake = stack.use(await startWake(subscriber, keys));
  const nodes = stack.use(await startNodeGuard(createNodeStateStore(redis, keys), wake, log));
  const http = stack.use(createPveHttp(toPveTarget(config), { health: nodes, onRequest: noteRequest(metrics) }));
  const pve = createPveApi(http);
  const tasks = stack.use(createTaskWatcher(pve, { onEnd: metrics.taskEnded }));
  const execd = stack.use(createExecd());
  const shell = stack.use(createNodeShell(config, createAddressOf(pve)));
  const slots = createSlots(redis, keys);
  const { PVE_PUBLIC_DOMAIN: publicDomain, PVE_URL_PATTERN: pattern } = config;
  const collector = createCollector(pve, {
    vmids: config.PVE_VMID_RANGE,
    urls: { pattern, ...(publicDomain === undefined ? {} : { publicDomain }) },
    limits: toLimits(config),
    prefixes: config.FLEET_ADOPT_PREFIXES,
    leased: () => redis.hkeys(keys.vmids),
    isCloning: async (node, vmid) => (await slots.taken([slotOf.replica(node, vmid)]))[0] !== 0,
  });
  const inventory = stack.use(createInventorySource(redis, keys, collector));
  const machines = stack.use(startOwnMachines({ redis, keys, pve, config, log }));
  const queues = createQueues(redis, config.FLEET_PREFIX);
  stack.defer(() => queues.close());
  const strays = createStrays(redis, keys);
  await strays.origin();
  const retentionSec = retentionSecOf(config);
  const channels = new Channels(() =>
    connectRedis(config.REDIS_URL).on("error", (error) => log.warn({ err: error }, "redis connection")),
  );
  stack.defer(() => channels.close());
  const context: WorkerContext = {
    config,
    redis,
    keys,
    store: createOperationStore(redis, keys, { retentionSec }),
    batches: createBatchStore(redis, keys, { retentionSec }),
    slots,
    quotas: createQuotas(redis, keys),
    pools: createPools(redis, keys),
    strays,
    get origin() {
      return strays.lastOrigin();
    },
    secrets: createSecretStore(redis, keys, config.FLEET_SECRET_KEY),
    contents: createContentStore(keys, config.FLEET_SECRET_KEY),
    shellInputs: createShellInputs(keys, config.FLEET_SECRET_KEY),
    channels,
    queues,
    wake,
    pve,
    tasks,
    execd,
    shell,
    inventory,
    machines,
    nodes,
    metrics,
    traces,
    log,
  };
  await readFirst(inventory, log);
  const works = config.FLEET_ROLES.has("worker");
  if (works) await publishSettings(redis, keys, config);
  const clockwork = await startClockwork(context, inventory, { works });
  stack.use(clockwork);

  const live: LiveRuns = new Set();
  const workers = createQueueWorkers(context, live);
  if (works) stack.use(startAborts(context, live));
  if (works) stack.use(startExpiry(context));
  const webhooks = works ? stack.use(await startWebhooks(context)) : null;
  if (works) {
    nodes.startProbing(
      (node, signal) => answers(pve, node, signal),
      async (node) => {
        // What was last read of the node says that its templates can't be used; all others take the new reading over.
        await inventory.update(0, AbortSignal.timeout(30_000));
        await redis.publish(keys.wake, `node ${node}`);
      },
    );
    await workers.follow(inventory.current());
    inventory.onChange((latest) => {
      workers.follow(latest).catch((error: unknown) => log.warn({ err: error }, "could not follow the cluster yet"));
    });
  }
  const leaving = new AbortController();
  stack.defer(() => leaving.abort(new FleetError("shutting_down", "the worker is shutting down")));
  wake.on((kind, subject) => {
    if (kind === "node") {
      const adopt = inventory.update(Number.POSITIVE_INFINITY, AbortSignal.timeout(30_000));
      adopt.catch((error: unknown) => log.warn({ err: error }, "could not take over the cluster's state yet"));
    }
    if (kind === "batch" && works) {
      settleBatch(context, subject, leaving.signal).catch((error: unknown) => {
        if (!leaving.signal.aborted) log.warn({ err: error }, "could not settle a batch yet");
      });
    }
  });

  const resources = stack.move();
  let closing: Promise<void> | null = null;
  const close = async () => {
    const patience = setTimeout(() => {
      for (const run of live) run.abort(new FleetError("shutting_down", "the worker is shutting down"));
    }, config.FLEET_SHUTDOWN_SECONDS * 1_000);
    await Promise.all([workers.close(), webhooks?.[Symbol.asyncDispose]()]);
    clearTimeout(patience);
    await resources.disposeAsync();
  };
  const closeOnce = () => (closing ??= close());
  log.info(
    { nodes: inventory.current().nodes.map(({ name }) => name), version: inventory.current().version },
    "workers started",
  );
  return { context, close: closeOnce, [Symbol.asyncDispose]: closeOnce };
}

/** Counted, and a span of the run that asked. */
function noteRequest(metrics: Metrics) {
  return (report: RequestReport) => {
    metrics.pveAnswered(report);
    const { method, endpoint, node, status, ms } = report;
    addPastSpan(`${method} ${endpoint}`, {
      ms,
      kind: SpanKind.CLIENT,
      failed: status === 0 || status >= 400,
      attributes: {
        "http.request.method": method,
        "url.template": endpoint,
        "http.response.status_code": status,
        ...(node === undefined ? {} : { "fleet.node": node }),
      },
    });
  };
}

const START_PATIENCE_MS = 20_000;

/**
 * The first reading of the cluster. What the configuration has wrong ends the start; in PVE's bad weather another
 * worker's last reading will do, else PVE is asked again for a while.
 */
async function readFirst(inventory: LiveInventory, log: Logger): Promise<void> {
  const patience = performance.now() + START_PATIENCE_MS;
  for (let everyMs = 0; ; everyMs = Number.POSITIVE_INFINITY) {
    try {
      return await inventory.update(everyMs, AbortSignal.timeout(30_000));
    } catch (thrown) {
      const error = toFleetError(thrown);
      const hopeless = error.policy === "never" || isAboutAccess(error);
      if (hopeless || performance.now() > patience) throw error;
      log.warn({ code: error.code, facts: error.facts }, "could not read the cluster yet");
      await delay(1_000);
    }
  }
}

/** Of members of pools, in one process. */
const CLAIMS_AT_ONCE = 32;

/** One worker for `place` and two a node; nodes may appear and vanish. */
function createQueueWorkers(context: WorkerContext, live: LiveRuns) {
  const { config } = context;
  const workers = new Map<string, Worker>();
  const ensure = (queue: string, concurrency: number, { placed = false, claimsAhead = false } = {}) => {
    if (workers.has(queue)) return;
    workers.set(queue, startOperationWorker(context, { queue, concurrency, placed, claimsAhead, handlerOf, live }));
  };
  let closed = false;
  return {
    /** Limits come first: a queue without them would let every worker take as many jobs as it likes. */
    async follow({ nodes }: Inventory) {
      if (!workers.has(PLACE)) await assertPlaceLimit(context);
      if (!closed) ensure(PLACE, 1);
      if (!closed) ensure(WARM, CLAIMS_AT_ONCE, { claimsAhead: true });
      // Nodes that have left the cluster stay served, also after a restart, until they are cleared: what waits in their queues must end too.
      if (nodes.length > 0) await context.redis.sadd(context.keys.nodes, ...nodes.map(({ name }) => name));
      const names = (await context.redis.smembers(context.keys.nodes)).map((name) => NodeName.parse(name));
      const served = new Set([PLACE, WARM, ...names.flatMap((name) => [nodeQueue(name), execQueue(name)])]);
      for (const [queue, worker] of workers) {
        if (served.has(queue)) continue;
        workers.delete(queue);
        await worker.close(); // nothing of it runs
      }
      const fresh = names.filter((name) => !workers.has(nodeQueue(name)));
      await Promise.all(fresh.map((name) => assertNodeLimits(context, name)));
      for (const name of closed ? [] : fresh) {
        ensure(nodeQueue(name), config.FLEET_NODE_SLOTS, { placed: true });
        ensure(execQueue(name), config.FLEET_EXEC_SLOTS, { claimsAhead: true });
      }
    },
    async close() {
      closed = true;
      await Promise.all([...workers.values()].map((worker) => worker.close()));
    },
  };
}
