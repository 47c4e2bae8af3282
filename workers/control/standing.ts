/**
 * The records against PVE's list: a sandbox whose container is gone ends as `lost`, what somebody changed behind our back is
 * taken into the record, and what ran when its node went down is started again. The list lags, so each is looked at first.
 */
import { retentionSecOf } from "../../shared/config.ts";
import { toFleetError } from "../../shared/errors.ts";
import { type NodeName, Vmid } from "../../shared/ids.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import { GIB, MIB } from "../../shared/placement/capacity.ts";
import { loadReservation, type Reservation, reserve, unreserve } from "../../shared/placement/reservation.ts";
import type { Finding } from "../../shared/state/errands.ts";
import type { Command } from "../../shared/state/operations.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import { type Settlement, settleSandbox } from "../../shared/state/settle-sandbox.ts";
import { listPlaced, STANDING, type Standing } from "../../shared/state/standing.ts";
import type { WorkerContext } from "../context.ts";
import type { ClusterResource, LxcConfig } from "../pve/api.ts";
import { askOperation } from "../run/ask-operation.ts";
import { type Place, placeOf } from "../sandbox/look.ts";
import { releaseCommands } from "../sandbox/release.ts";
import { toReservation } from "../sandbox/reservation.ts";
import { type Boots, GOING_DOWN_MS, isAudited, type NodesByName, noteBoots, noteSeen } from "./boots.ts";
import { ASK_AGAIN_MS } from "./expire.ts";
import { settleLocks } from "./locks.ts";
import { readOwn } from "./own.ts";
import type { Round } from "./round.ts";

/** Containers at once on a node. */
const AT_ONCE = 3;

type Placed = SandboxRecord & Place;

export async function compareRecords(context: WorkerContext, round: Round): Promise<Finding[]> {
  const standing = (await listPlaced(context.redis, context.keys)).filter(({ state }) => STANDING.has(state));
  const guests = new Map(round.guests.flatMap((one) => (one.vmid === undefined ? [] : [[Number(one.vmid), one]])));
  const nodes = new Map(round.guests.flatMap((one) => (one.type === "node" && one.node ? [[one.node, one]] : [])));
  const boots = await noteBoots(context, standing, nodes, round);
  const runs = ({ vmid }: Standing) => guests.get(vmid)?.status === "running";
  const up = standing.filter((one) => boots.marked.has(one.id) && runs(one) && boots.isPast(one.node));
  if (up.length > 0 && !round.dryRun) await context.redis.srem(context.keys.restarts, ...up.map(({ id }) => id));
  const suspects = standing.filter(
    (one) => (boots.marked.has(one.id) && !runs(one)) || differs(one, guests.get(one.vmid), nodes),
  );
  const findings: Finding[] = [];
  const stopping = new Map<NodeName, Promise<boolean>>();
  const started = new Map<NodeName, number>();
  const look: Look = {
    round,
    guests,
    boots,
    isAudited: (node) => isAudited(nodes, node),
    isGoingDown(node) {
      const known = stopping.get(node) ?? isGoingDown(context, node, round);
      stopping.set(node, known);
      return known;
    },
    mayStart: (node) => (started.get(node) ?? 0) < context.config.FLEET_NODE_SLOTS * 2,
    hasStarted: (node) => started.set(node, (started.get(node) ?? 0) + 1),
  };
  const lanes = [...Map.groupBy(suspects, ({ node }) => node).values()].flatMap((some) => {
    const rest = some.values();
    return Array.from({ length: AT_ONCE }, async () => {
      for (const { id, node } of rest) {
        try {
          const record = toPlaced(await context.store.loadSandbox(id));
          const finding = record && (await settle(context, record, look));
          if (finding) findings.push(finding);
        } catch (error) {
          round.signal.throwIfAborted();
          const { code } = toFleetError(error);
          context.log.debug({ sandbox: id, node, code }, "could not look at a container yet");
        }
      }
    });
  });
  await Promise.all(lanes);
  if (!round.dryRun) await noteSeen(context, nodes);
  return [...findings, ...(await settleLocks(context, round, standing))];
}

function toPlaced(record: SandboxRecord | null): Placed | null {
  const place = record === null || !STANDING.has(record.state) ? null : placeOf(record);
  return record && place && { ...record, ...place };
}

/** Whether the list says something else than the record. Of a node that is away it says nothing. */
function differs(
  { state, node, hostname, memoryMib, diskGib, cores }: Standing,
  guest: ClusterResource | undefined,
  nodes: NodesByName,
): boolean {
  if (guest === undefined) return true;
  if (guest.node !== node) return true;
  if (nodes.get(node)?.status === "offline" || guest.status === undefined || guest.status === "unknown") return false;
  if (state === "template" || state === "warm") return false;
  const { name, maxmem = 0, maxdisk = 0, maxcpu } = guest;
  if ((guest.status === "running") === (state === "stopped")) return true;
  if (name !== undefined && hostname !== undefined && name !== hostname) return true;
  if (memoryMib !== undefined && maxmem > 0 && maxmem !== memoryMib * MIB) return true;
  // Where they are not known, as of an earlier version's sandboxes, the next look for another reason writes them down.
  const known = cores === 0 ? nodes.get(node)?.maxcpu : cores;
  if (maxcpu !== undefined && known !== undefined && maxcpu !== known) return true;
  // Disks only grow; what PVE tells of a running one is its file system, which is somewhat smaller.
  return diskGib !== undefined && diskGib > 0 && maxdisk > diskGib * GIB;
}

interface Look {
  round: Round;
  guests: ReadonlyMap<number, ClusterResource>;
  boots: Boots;
  /** Whether the token sees what others do on a node. */
  isAudited(node: NodeName): boolean;
  isGoingDown(node: NodeName): Promise<boolean>;
  /** Whether one more is asked for in this round. */
  mayStart(node: NodeName): boolean;
  hasStarted(node: NodeName): void;
}

/** A node that is shut down stops all its containers first, by a task of its own. */
async function isGoingDown({ pve }: WorkerContext, node: NodeName, { signal, now }: Round): Promise<boolean> {
  const since = Math.floor((now - GOING_DOWN_MS) / 1_000);
  const tasks = await pve.tasks.list(node, { source: "all", typefilter: "stopall", limit: 5 }, { signal });
  return tasks.some(({ type, starttime }) => type === "stopall" && starttime >= since);
}

async function settle(context: WorkerContext, record: Placed, look: Look): Promise<Finding | null> {
  const { redis, keys, pve } = context;
  const { round } = look;
  if ((await redis.llen(keys.changes(record.id))) > 0) return null;
  const guest = look.guests.get(record.vmid);
  if (guest === undefined) {
    // The cluster knows whether the VMID is taken, whatever the token may see, and whichever node is away.
    const isFree = await pve.isFree(Vmid.parse(record.vmid), round);
    return isFree ? settleGhost(context, record, round, "its container is gone") : null;
  }
  const node = guest.node ?? record.node;
  const config = await readOwn(context, record, { node, vmid: record.vmid }, round);
  if (config === "foreign") return settleGhost(context, record, round, "its VMID is somebody else's by now");
  if (config === null) return null;
  const moved = await settleDrift(context, record, { node, config }, round);
  if (moved || record.state === "template" || record.state === "warm") return moved;
  const { status } = await pve.lxc(record.node, record.vmid).status(round);
  return settlePower(context, record, status, look);
}

const about = ({ node, vmid, hostname, id, team }: Placed) => ({ node, vmid, name: hostname, sandbox: id, team });

async function apply(context: WorkerContext, record: Placed, change: Settlement, { dryRun, now }: Round) {
  if (dryRun) return true;
  const { redis, keys, config } = context;
  return settleSandbox(redis, keys, record, change, { now, retentionSec: retentionSecOf(config) });
}

async function settleGhost(context: WorkerContext, record: Placed, round: Round, why: string): Promise<Finding | null> {
  const also = await releaseCommands({ context, sandbox: record });
  if (!(await apply(context, record, { sandbox: { state: "lost" }, also }, round))) return null;
  if (!round.dryRun) {
    context.metrics.reconciled("lost", 1);
    context.log.warn({ node: record.node, vmid: record.vmid, sandbox: record.id, why }, "a sandbox is lost");
  }
  const done = round.dryRun ? "to take in" : "taken in";
  return { what: "ghost", ...about(record), done, text: `${why}: the sandbox ends as lost` };
}

/** Moved, renamed or resized by somebody else. */
async function settleDrift(
  context: WorkerContext,
  record: Placed,
  { node, config }: { node: NodeName; config: LxcConfig },
  round: Round,
): Promise<Finding | null> {
  const { redis, keys, metrics, log } = context;
  const fields: string[] = [];
  const before = await loadReservation(redis, keys, record.node, record.id);
  const now = { ...before, ...toReservation(config) };
  // Earlier versions wrote down no cores and swap.
  const isNoted = before.cores !== undefined;
  const isResized =
    now.memoryMib !== before.memoryMib ||
    hasOtherDisks(now.disks, before.disks) ||
    (isNoted && (now.cores !== before.cores || now.swapMib !== before.swapMib));
  const isMoved = node !== record.node;
  const isRenamed = config.hostname !== undefined && config.hostname !== record.hostname;
  if (isMoved) fields.push("node");
  if (isRenamed) fields.push("hostname");
  if (isResized) fields.push("resources");
  if (fields.length === 0) {
    if (!isNoted) await apply(context, record, { sandbox: {}, also: reserve(keys, node, record.id, now) }, round);
    return null;
  }
  const also: Command[] = [
    ...(isMoved ? unreserve(keys, record.node, record.id) : []),
    ...(isMoved || isResized ? reserve(keys, node, record.id, now) : []),
  ];
  const sandbox = { ...(isMoved ? { node } : {}), ...(isRenamed ? { hostname: config.hostname } : {}) };
  if (!(await apply(context, record, { sandbox, also, fields }, round))) return null;
  const text = `${fields.join(", ")} changed by somebody else${isMoved ? `: it was on ${record.node}` : ""}`;
  if (!round.dryRun) {
    metrics.reconciled("drift", 1);
    log.info({ node, vmid: record.vmid, sandbox: record.id, fields }, "container was changed by somebody else");
  }
  return { what: "drift", ...about(record), node, done: round.dryRun ? "to take in" : "taken in", text };
}

/** In whole GiB, as placement counts. */
function hasOtherDisks(now: Reservation["disks"], before: Reservation["disks"]): boolean {
  const storages = Object.keys({ ...now, ...before });
  return storages.some((name) => Math.ceil(now[name] ?? 0) !== Math.ceil(before[name] ?? 0));
}

async function settlePower(
  context: WorkerContext,
  record: Placed,
  status: "running" | "stopped",
  look: Look,
): Promise<Finding | null> {
  const { redis, keys, metrics } = context;
  const { round, boots, isAudited: seesAll, isGoingDown: goesDown } = look;
  const { id, node, state, address } = record;
  const runs = status === "running";
  if (!runs && boots.marked.has(id)) {
    if (!boots.isLongAgo(node)) return startAgain(context, record, look);
    if (!round.dryRun) await redis.srem(keys.restarts, id);
  }
  if (runs !== (state === "stopped")) return null;
  if (!runs && state === "running") {
    if (seesAll(node) && (await goesDown(node)))
      return {
        what: "restart",
        ...about(record),
        done: "waits",
        text: "its node stops all its containers, as before a restart",
      };
  }
  const also: Command[] = [
    ...(runs || address === undefined ? [] : [["HDEL", keys.addresses, address]]),
    // Nobody says whether it was somebody's wish or the node's own, before it went down.
    ...(runs || seesAll(node) ? [] : [["ZADD", keys.halted, round.now, id]]),
  ];
  const sandbox = runs ? { state: "running" as const } : { state: "stopped" as const, address: null };
  if (!(await apply(context, record, { sandbox, also }, round))) return null;
  if (!round.dryRun) metrics.reconciled("drift", 1);
  const text = runs ? "was started by somebody else" : "was stopped by somebody else, or has stopped itself";
  return { what: "drift", ...about(record), done: round.dryRun ? "to take in" : "taken in", text };
}

/** By an operation like any other, under the node's slots; where that fails, by another one some minutes later. */
async function startAgain(
  context: WorkerContext,
  record: Placed,
  { round: { dryRun, now }, boots, mayStart, hasStarted }: Look,
): Promise<Finding> {
  const { id, node } = record;
  const finding = { what: "restart" as const, ...about(record), text: "ran when its node went down" };
  if (!mayStart(node)) return { ...finding, done: "waits", text: "others of its node go first" };
  if (dryRun) return { ...finding, done: "to ask for" };
  const askOnce = (idempotencyKey: string) => {
    const input = parseInput("power", { sandboxId: id, action: "start" });
    return askOperation(context, record, { kind: "power", input, idempotencyKey });
  };
  const key = `boot ${id} ${boots.at(node)} ${Math.floor((now - boots.at(node)) / ASK_AGAIN_MS)}`;
  const first = await askOnce(key);
  let { existing } = first;
  const before = existing ? await context.store.load(first.id) : null;
  // It ran, and its node went down once more.
  if (before?.status === "succeeded") ({ existing } = await askOnce(`${key} ${before.endedAt}`));
  if (existing) return { ...finding, done: "waits", text: "its start has failed, and is asked for again soon" };
  hasStarted(node);
  context.metrics.reconciled("restarted", 1);
  return { ...finding, done: "asked for" };
}
