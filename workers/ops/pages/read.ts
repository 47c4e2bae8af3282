/** What the pages show, read from Redis. */
import { z } from "zod";
import { SandboxId, type Vmid } from "../../../shared/ids.ts";
import { execQueue, type FleetQueue, nodeQueue, PLACE } from "../../../shared/queues.ts";
import type { Inventory } from "../../../shared/state/inventory.ts";
import { createNodeStateStore, toObstacles } from "../../../shared/state/nodes.ts";
import type { BatchRecord, SandboxRecord, SandboxState } from "../../../shared/state/records.ts";
import { SANDBOX_STATES } from "../../../shared/state/records.ts";
import { slotOf } from "../../../shared/state/slots.ts";
import type { Quarantined } from "../../../shared/state/strays.ts";
import type { WorkerContext } from "../../context.ts";
import { removalAt } from "../../control/orphans.ts";
import { passOver } from "../../pass-over.ts";
import { findSandboxes, tallySandboxes } from "../all-sandboxes.ts";
import { type PoolRow, readPools } from "../pools.ts";
import { checkReadiness } from "../readiness.ts";
import { findStale, type StaleSlot } from "../stale-slots.ts";

interface Counts {
  active: number;
  waiting: number;
}

export interface NodeRow {
  name: string;
  online: boolean;
  cordoned: boolean;
  /** Why nothing new goes there. */
  obstacle: string | undefined;
  slots: { taken: number; limit: number };
  queue: Counts;
  exec: Counts;
  memory: { used: number; total: number };
  storages: { name: string; used: number; total: number }[];
}

export interface Trouble {
  grade: "warn" | "bad";
  text: string;
  href?: string;
}

export interface FleetView {
  nodes: NodeRow[];
  states: ReadonlyMap<SandboxState, number>;
  open: number;
  /** Jobs of `place` that wait. */
  placing: number;
  batches: BatchRecord[];
  pools: PoolRow[];
  quarantine: QuarantineView;
  troubles: Trouble[];
}

/** Containers that no sandbox owns. */
export interface QuarantineView {
  /** Those that go first, and `total` of them. */
  rows: (Quarantined & { vmid: Vmid; removeAt: number })[];
  total: number;
}

export const PAGE_ROWS = 100;
const OLD_OPERATION_MS = 600_000;
const STORAGE_FULL = 0.9;
const QUARANTINE_ROWS = 20;
/** Of a pool's makings in a row. */
const FAILURES = 3;

export const SandboxQuery = z.object({
  q: z.string().max(100).default("").catch(""),
  state: z.string().max(20).default("").catch(""),
  team: z.string().max(64).default("").catch(""),
  page: z.coerce.number().int().min(1).max(1_000_000).default(1).catch(1),
});
export type SandboxQuery = z.output<typeof SandboxQuery>;

export interface SandboxPage {
  rows: SandboxRecord[];
  found: number;
  total: number;
}

export async function readSandboxes(context: WorkerContext, query: SandboxQuery): Promise<SandboxPage> {
  const { ids, total } = await findSandboxes(context, query);
  const shown = ids.slice((query.page - 1) * PAGE_ROWS, query.page * PAGE_ROWS);
  const rows = await Promise.all(shown.map((id) => context.store.loadSandbox(SandboxId.parse(id))));
  return { rows: rows.filter((one) => one !== null), found: ids.length, total };
}

export async function readFleet(context: WorkerContext): Promise<FleetView> {
  const { redis, keys, queues, slots, config } = context;
  const cluster = currentOf(context);
  const nodes = cluster?.nodes ?? [];
  const [states, taken, stale, counts, placing, tallies, open, oldest, batches, readiness, quarantine] =
    await Promise.all([
      createNodeStateStore(redis, keys).load(),
      slots.taken(nodes.map(({ name }) => slotOf.node(name))),
      cluster === null ? [] : findStale(context, cluster),
      Promise.all(
        nodes.map(({ name }) => Promise.all([count(queues.get(nodeQueue(name))), count(queues.get(execQueue(name)))])),
      ),
      count(queues.get(PLACE)),
      tallySandboxes(context),
      redis.zcard(keys.open),
      redis.zrange(keys.open, "0", "0", "WITHSCORES"),
      context.batches.list(passOver(context)),
      checkReadiness(context),
      readQuarantine(context),
    ]);
  const pools = await readPools(context, tallies);
  const obstacles = toObstacles(states);
  const rows = nodes.map((node, at): NodeRow => {
    const [queue, exec] = counts[at] ?? [];
    return {
      name: node.name,
      online: node.online,
      cordoned: states.cordons.has(node.name),
      obstacle: obstacles.get(node.name),
      slots: { taken: taken[at] ?? 0, limit: config.FLEET_NODE_SLOTS },
      queue: queue ?? { active: 0, waiting: 0 },
      exec: exec ?? { active: 0, waiting: 0 },
      memory: { used: node.memoryUsedBytes, total: node.memoryBytes },
      storages: node.storages
        .filter(({ rootdir }) => rootdir)
        .map(({ name, usedBytes, totalBytes }) => ({ name, used: usedBytes, total: totalBytes })),
    };
  });
  const countOf = (state: SandboxState) => tallies.reduce((sum, one) => sum + (one.state === state ? one.count : 0), 0);
  const totals = new Map(SANDBOX_STATES.map((state) => [state, countOf(state)]));
  return {
    nodes: rows,
    states: totals,
    open,
    placing: placing.waiting,
    batches,
    pools,
    quarantine,
    troubles: [
      ...Object.entries(readiness.checks).flatMap(([name, text]): Trouble[] =>
        text === "ok" ? [] : [{ grade: "bad", text: `${name}: ${text}` }],
      ),
      ...toStaleTroubles(stale),
      ...toPoolTroubles(pools),
      ...toQuarantineTroubles(quarantine),
      ...findTroubles(rows, totals, { id: oldest[0], acceptedAt: Number(oldest[1]) }),
    ],
  };
}

async function readQuarantine(context: WorkerContext): Promise<QuarantineView> {
  const all = [...(await context.strays.list())].map(([vmid, entry]) => ({
    ...entry,
    vmid,
    removeAt: removalAt(context, entry),
  }));
  // Two that stay for ever are as late as each other.
  const rows = all.sort((a, b) => (a.removeAt === b.removeAt ? a.vmid - b.vmid : a.removeAt - b.removeAt));
  return { rows: rows.slice(0, QUARANTINE_ROWS), total: all.length };
}

function toQuarantineTroubles({ total }: QuarantineView): Trouble[] {
  if (total === 0) return [];
  const text = `${total} ${total === 1 ? "container" : "containers"} that no sandbox owns in quarantine`;
  return [{ grade: "warn", text, href: "#quarantine" }];
}

const toPoolTroubles = (pools: readonly PoolRow[]): Trouble[] =>
  pools
    .filter(({ failures }) => failures >= FAILURES)
    .map(({ template, failures }) => ({
      grade: "warn",
      text: `members of the pool of ${template} can't be made: ${failures} failed in a row`,
    }));

const NAMED = 5;

function toStaleTroubles(stale: readonly StaleSlot[]): Trouble[] {
  const named = stale.slice(0, NAMED).map(
    ({ name, operation }): Trouble => ({
      grade: "warn",
      text: `slot ${name} is held by ${operation}, which has not renewed it for 30 s`,
      href: `/operations/${operation}`,
    }),
  );
  const rest = stale.length - named.length;
  return rest > 0 ? [...named, { grade: "warn", text: `and ${rest} more slots like this` }] : named;
}

function findTroubles(
  nodes: readonly NodeRow[],
  states: ReadonlyMap<SandboxState, number>,
  oldest: { id: string | undefined; acceptedAt: number },
): Trouble[] {
  const found: Trouble[] = [];
  const quarantined = states.get("quarantined") ?? 0;
  if (quarantined > 0)
    found.push({
      grade: "bad",
      text: `${quarantined} quarantined: only a human can clear their containers`,
      href: "/sandboxes?state=quarantined",
    });
  for (const { name, online, obstacle, storages } of nodes) {
    if (!online) found.push({ grade: "bad", text: `node ${name} is offline` });
    else if (obstacle?.includes("breaker")) found.push({ grade: "bad", text: `node ${name}: ${obstacle}` });
    for (const { name: storage, used, total } of storages)
      if (total > 0 && used / total > STORAGE_FULL)
        found.push({
          grade: "warn",
          text: `storage ${storage} on ${name} is ${Math.round((100 * used) / total)} % full`,
        });
  }
  const ageMs = Date.now() - oldest.acceptedAt;
  if (oldest.id !== undefined && ageMs > OLD_OPERATION_MS)
    found.push({
      grade: "warn",
      text: `operation ${oldest.id} has been open for ${Math.round(ageMs / 60_000)} min`,
      href: `/operations/${oldest.id}`,
    });
  return found;
}

function currentOf({ inventory }: WorkerContext): Inventory | null {
  try {
    return inventory.current();
  } catch {
    return null;
  }
}

async function count(queue: FleetQueue): Promise<Counts> {
  const {
    active = 0,
    waiting = 0,
    prioritized = 0,
    delayed = 0,
  } = await queue.getJobCounts("active", "waiting", "prioritized", "delayed");
  return { active, waiting: waiting + prioritized + delayed };
}
