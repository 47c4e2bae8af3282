/** What holds for the whole fleet, read when somebody asks: every process tells the same. */
import { Counter, Gauge, Registry } from "prom-client";
import { CONTROL, execQueue, type FleetQueue, nodeQueue, PLACE, WARM } from "../../shared/queues.ts";
import { createEventGroupStore } from "../../shared/state/event-groups.ts";
import { createNodeStateStore } from "../../shared/state/nodes.ts";
import { SANDBOX_STATES } from "../../shared/state/records.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { WorkerContext } from "../context.ts";
import { tallySandboxes } from "./all-sandboxes.ts";
import { type PoolRow, readPools } from "./pools.ts";
import { findStale } from "./stale-slots.ts";

/** Several scrapers at once cost one reading. */
const KEPT_MS = 5_000;
/** See `Quarantined`; new: not looked at yet. */
const VERDICTS = ["new", "wait", "remove", "later", "keep", "stranger"] as const;
const JOB_STATES = ["waiting", "prioritized", "delayed", "active", "failed"] as const;

/** The gauges as the fleet stands now, as Prometheus reads them. Throws where Redis does not answer. */
export function createFleetGauges(context: WorkerContext): () => Promise<string> {
  const registry = new Registry();
  const gauges = define(registry);
  let readAt = Number.NEGATIVE_INFINITY;
  let reading = Promise.resolve("");
  return () => {
    if (performance.now() - readAt < KEPT_MS) return reading;
    readAt = performance.now();
    registry.resetMetrics(); // nodes and storages may have gone
    reading = read(context, gauges).then(() => registry.metrics());
    reading.catch(() => {
      readAt = Number.NEGATIVE_INFINITY;
    });
    return reading;
  };
}

function define(registry: Registry) {
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
    new Gauge({ name, help, labelNames, registers: [registry] });
  /** Counted in Redis. */
  const total = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Counter({ name, help, labelNames, registers: [registry] });
  return {
    jobs: gauge("fleet_queue_jobs", "Jobs in a queue by state.", ["queue", "state"]),
    oldest: gauge("fleet_queue_oldest_job_age_seconds", "How long the oldest job that is ready has waited.", ["queue"]),
    open: gauge("fleet_open_operations", "Operations accepted and not ended."),
    sandboxes: gauge("fleet_sandboxes", "Sandboxes that have not ended, by state.", ["state"]),
    members: gauge("fleet_pool_members", "Members of a pool: ready to be claimed, silent, or being made.", [
      "template",
      "state",
    ]),
    poolTarget: gauge("fleet_pool_target", "How many members a pool is to have just now.", ["template"]),
    poolMax: gauge("fleet_pool_max", "How many members a pool may have.", ["template"]),
    poolFailures: gauge("fleet_pool_failures", "Makings of a pool's members that failed since the last good one.", [
      "template",
    ]),
    poolAsked: total("fleet_pool_provisions_total", "Provisions that a pool could have served: hit, or miss.", [
      "template",
      "result",
    ]),
    poolClaims: total("fleet_pool_claim_seconds_total", "From acceptance to the claim, over all hits.", ["template"]),
    poolMade: total("fleet_pool_made_total", "Members of a pool that became ready.", ["template"]),
    poolMaking: total("fleet_pool_making_seconds_total", "What these took from acceptance until ready.", ["template"]),
    poolIdle: total("fleet_pool_idle_seconds_total", "How long members stood ready until claimed or removed.", [
      "template",
    ]),
    orphans: gauge("fleet_quarantined_containers", "Containers that no sandbox owns, by what was found about them.", [
      "verdict",
    ]),
    slots: gauge("fleet_node_slots", "Heavy operations that a node takes at once.", ["node"]),
    taken: gauge("fleet_node_slots_taken", "Slots of a node that are taken.", ["node"]),
    stale: gauge("fleet_slots_stale", "Slots of nodes, replicas and storages that no run has renewed for 30 s."),
    vmids: gauge("fleet_vmids_leased", "VMIDs of the range that are leased."),
    vmidRange: gauge("fleet_vmids", "VMIDs in the range."),
    addresses: gauge("fleet_addresses_leased", "Addresses of the range that are leased."),
    online: gauge("fleet_node_online", "Whether the cluster says that a node is online.", ["node"]),
    broken: gauge("fleet_node_breaker_open", "Whether a node's circuit breaker is open.", ["node"]),
    cordoned: gauge("fleet_node_cordoned", "Whether a node is cordoned.", ["node"]),
    memory: gauge("fleet_node_memory_bytes", "Memory of a node.", ["node"]),
    memoryUsed: gauge("fleet_node_memory_used_bytes", "Memory of a node in use.", ["node"]),
    storage: gauge("fleet_storage_bytes", "Size of a storage that takes containers.", ["node", "storage"]),
    storageUsed: gauge("fleet_storage_used_bytes", "Bytes of a storage in use.", ["node", "storage"]),
    inventoryAt: gauge("fleet_inventory_timestamp_seconds", "When a worker last read the cluster."),
    pulseAt: gauge("fleet_workers_timestamp_seconds", "When a worker last wrote that it is alive."),
    unread: gauge("fleet_event_group_lag_events", "Events that a group of consumers or a webhook has yet to get.", [
      "group",
    ]),
    eventAt: gauge("fleet_last_event_timestamp_seconds", "When the newest event was written."),
    redisMemory: gauge("fleet_redis_memory_used_bytes", "Memory that Redis uses."),
    redisLimit: gauge("fleet_redis_memory_limit_bytes", "maxmemory of Redis; 0: none."),
    redisKeeps: gauge("fleet_redis_noeviction", "Whether Redis refuses writes instead of evicting keys."),
  };
}

async function read(context: WorkerContext, gauges: ReturnType<typeof define>): Promise<void> {
  const { redis, keys, queues, slots, inventory, config } = context;
  const cluster = inventory.current();
  const names = cluster.nodes.map(({ name }) => name);
  const queueNames = [PLACE, WARM, CONTROL, ...names.flatMap((name) => [nodeQueue(name), execQueue(name)])];
  const [states, taken, stale, pulse, newest, groups, open, vmids, addresses, info] = await Promise.all([
    createNodeStateStore(redis, keys).load(),
    slots.taken(names.map((name) => slotOf.node(name))),
    findStale(context, cluster),
    redis.hget(keys.pulse, "at"),
    redis.xrevrange(keys.events, "+", "-", "COUNT", 1),
    createEventGroupStore((run) => run(redis), keys).list(),
    redis.zcard(keys.open),
    redis.hlen(keys.vmids),
    redis.hlen(keys.ips),
    redis.info("memory"),
    readOrphans(context, gauges),
    ...queueNames.map((name) => readQueue(queues.get(name), gauges)),
    readSandboxes(context, gauges),
  ]);
  gauges.open.set(open);
  gauges.stale.set(stale.length);
  gauges.vmids.set(vmids);
  gauges.vmidRange.set(config.PVE_VMID_RANGE.last - config.PVE_VMID_RANGE.first + 1);
  gauges.addresses.set(addresses);
  gauges.inventoryAt.set(cluster.at / 1_000);
  if (pulse !== null) gauges.pulseAt.set(Number(pulse) / 1_000);
  for (const { name: group, lag } of groups) gauges.unread.set({ group }, lag);
  const [event] = newest;
  if (event) gauges.eventAt.set(Number.parseInt(event[0], 10) / 1_000);
  const field = (name: string) => new RegExp(`^${name}:(.*)$`, "m").exec(info)?.[1]?.trim();
  gauges.redisMemory.set(Number(field("used_memory") ?? 0));
  gauges.redisLimit.set(Number(field("maxmemory") ?? 0));
  gauges.redisKeeps.set(field("maxmemory_policy") === "noeviction" ? 1 : 0);
  for (const [at, node] of cluster.nodes.entries()) {
    const label = { node: node.name };
    gauges.slots.set(label, config.FLEET_NODE_SLOTS);
    gauges.taken.set(label, taken[at] ?? 0);
    gauges.online.set(label, Number(node.online));
    gauges.broken.set(label, Number((states.breakers.get(node.name)?.state ?? "closed") !== "closed"));
    gauges.cordoned.set(label, Number(states.cordons.has(node.name)));
    gauges.memory.set(label, node.memoryBytes);
    gauges.memoryUsed.set(label, node.memoryUsedBytes);
    for (const { name: storage, rootdir, totalBytes, usedBytes } of node.storages) {
      if (!rootdir) continue;
      gauges.storage.set({ ...label, storage }, totalBytes);
      gauges.storageUsed.set({ ...label, storage }, usedBytes);
    }
  }
}

async function readQueue(queue: FleetQueue, { jobs, oldest }: ReturnType<typeof define>): Promise<void> {
  const counts = await queue.getJobCounts(...JOB_STATES);
  for (const state of JOB_STATES) jobs.set({ queue: queue.name, state }, counts[state] ?? 0);
  const waiting = (counts["waiting"] ?? 0) + (counts["prioritized"] ?? 0) > 0;
  const first = waiting ? await queue.getJobs(["waiting", "prioritized"], 0, 0, true) : [];
  const since = first[0]?.timestamp;
  oldest.set({ queue: queue.name }, since === undefined ? 0 : Math.max(0, Date.now() - since) / 1_000);
}

async function readSandboxes(context: WorkerContext, gauges: ReturnType<typeof define>): Promise<void> {
  const tallies = await tallySandboxes(context);
  for (const state of SANDBOX_STATES) gauges.sandboxes.set({ state }, 0);
  for (const { state, count } of tallies) gauges.sandboxes.inc({ state }, count);
  for (const pool of await readPools(context, tallies)) tellPool(pool, gauges);
}

function tellPool(pool: PoolRow, gauges: ReturnType<typeof define>): void {
  const { template, settings, asked, hits } = pool;
  for (const state of ["ready", "silent", "making"] as const) gauges.members.set({ template, state }, pool[state]);
  gauges.poolTarget.set({ template }, pool.target);
  gauges.poolMax.set({ template }, settings?.max ?? 0);
  gauges.poolFailures.set({ template }, pool.failures);
  gauges.poolAsked.inc({ template, result: "hit" }, hits);
  gauges.poolAsked.inc({ template, result: "miss" }, Math.max(0, asked - hits));
  gauges.poolClaims.inc({ template }, pool.claimMs / 1_000);
  gauges.poolMade.inc({ template }, pool.made);
  gauges.poolMaking.inc({ template }, pool.madeMs / 1_000);
  gauges.poolIdle.inc({ template }, pool.idleMs / 1_000);
}

async function readOrphans({ strays }: WorkerContext, { orphans }: ReturnType<typeof define>): Promise<void> {
  for (const verdict of VERDICTS) orphans.set({ verdict }, 0);
  for (const { verdict = "new" } of (await strays.list()).values()) orphans.inc({ verdict });
}
