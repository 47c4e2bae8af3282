/**
 * Containers in the fleet's range and pool whose VMID no sandbox has leased (Redis lost its last writes; a request was
 * carried out long after its answer was lost; a node came back). They are found without a request of their own and put into
 * quarantine; what their stamp and the records say is looked at when their grace has passed, right before anything is done.
 */
import { FleetError, toFleetError, unreachable } from "../../shared/errors.ts";
import type { Vmid } from "../../shared/ids.ts";
import type { Finding } from "../../shared/state/errands.ts";
import { emitEvent } from "../../shared/state/events.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { Quarantined } from "../../shared/state/strays.ts";
import type { WorkerContext } from "../context.ts";
import type { Upid } from "../pve/upid.ts";
import { clearStaleLock } from "../sandbox/stale-lock.ts";
import { hasEnded, wasRefused } from "../sandbox/task.ts";
import { adoptNode } from "./adopt-node.ts";
import { judge, type Memory } from "./judge.ts";
import type { Round } from "./round.ts";
import { type Listed, listOwn, readStray, type Stray, unleased } from "./strays.ts";

/** From the lease of a stray's VMID to the request that removes it. */
const LEASED_MS = 3_000;
/** One that is somebody else's, or kept for an operator, is looked at again after this long. */
const LEFT_MS = 3_600_000;

type Entry = Quarantined & { vmid: Vmid };

/** Finds and settles; returns what was found, with what was done. */
export async function settleOrphans(context: WorkerContext, round: Round): Promise<Finding[]> {
  const { config, strays, inventory } = context;
  const found = await unleased(context, listOwn(round.guests, context));
  const entries = round.dryRun ? new Map(await strays.list()) : await quarantine(context, found, round.now);
  const online = new Set(inventory.current().nodes.flatMap(({ name, online }) => (online ? [name] : [])));
  const findings: Finding[] = [];
  const byNode = Map.groupBy(found, ({ node }) => node);
  const lanes = [...byNode].flatMap(([node, places]) => {
    const rest = places.values();
    // Half of the slots: who waits for one in line must not wait for all of these.
    const width = Math.max(1, Math.ceil(config.FLEET_NODE_SLOTS / 2));
    let silent = !online.has(node);
    return Array.from({ length: width }, async () => {
      for (const place of rest) {
        const known = entries.get(place.vmid) ?? fresh(context, place, round.now);
        const entry = { ...known, ...place };
        // Another round finds them as they are.
        if (silent || (!round.dryRun && !round.removeOrphans && known.lookAt > round.now)) {
          findings.push(toFinding(entry, "waits"));
          continue;
        }
        try {
          findings.push(await settle(context, entry, round));
          round.onProgress?.();
        } catch (error) {
          round.signal.throwIfAborted();
          const { code, facts } = toFleetError(error);
          context.log.info(
            { ...facts, node, vmid: place.vmid, code },
            "could not settle a container in quarantine yet",
          );
          const reason =
            code === "container_locked"
              ? `${code}; when no task works on it, on ${node}: pct unlock ${place.vmid}`
              : code;
          findings.push(toFinding({ ...entry, reason }, "waits"));
          // A node that can't tell must not keep those of the others.
          if (code === "node_unreachable" || code === "node_unavailable") silent = true;
        }
      }
    });
  });
  await Promise.all(lanes);
  return findings;
}

const fresh = ({ config }: WorkerContext, { node, name }: Listed, now: number): Quarantined => ({
  node,
  name,
  since: now,
  lookAt: now + config.FLEET_STRAY_GRACE_SECONDS * 1_000,
});

/** Notes those that are new, and lets go of those that are gone or have an owner. Returns those that stand in it now. */
async function quarantine(
  context: WorkerContext,
  found: readonly Listed[],
  now: number,
): Promise<Map<Vmid, Quarantined>> {
  const { strays, redis, keys, metrics, log } = context;
  const before = await strays.list();
  const entries = new Map(
    found.map((place) => {
      const known = before.get(place.vmid);
      return [place.vmid, known?.node === place.node ? known : fresh(context, place, now)];
    }),
  );
  const added = [...entries].filter(([vmid, entry]) => before.get(vmid) !== entry);
  if (added.length > 0) {
    await redis.hset(keys.strays, ...added.flatMap(([vmid, entry]) => [vmid, JSON.stringify(entry)]));
    metrics.reconciled("quarantined", added.length);
    log.warn(
      { containers: added.length },
      "containers that no sandbox owns are in quarantine; see fleet reconcile --dry-run",
    );
  }
  for (const vmid of before.keys()) if (!entries.has(vmid)) await strays.forget(vmid);
  return entries;
}

/** Looks at it, and does what there is to do. Throws where that can't be done now. */
async function settle(context: WorkerContext, entry: Entry, round: Round): Promise<Finding> {
  const { strays, store, redis, keys, metrics, log } = context;
  const { vmid, node } = entry;
  const stray = await readStray(context, { node, vmid }, round);
  if (stray === null) {
    const reason = "it does not carry this fleet's stamp, or the token may not read it";
    return note(context, entry, { ...entry, verdict: "stranger", reason, lookAt: round.now + LEFT_MS }, round);
  }
  const { operation, sandbox, team } = stray.stamp;
  const whose = { operation, sandbox, team };
  const [records, memory] = await Promise.all([
    Promise.all([store.load(operation), store.loadSandbox(sandbox)]),
    readMemory(context),
  ]);
  const judgement = judge(stray, { operation: records[0], sandbox: records[1] }, memory, Date.now());
  const judged = { ...entry, ...whose, ...judgement };
  switch (judgement.verdict) {
    case "own":
      if (!round.dryRun && (await redis.hsetnx(keys.vmids, String(vmid), sandbox)) === 1)
        metrics.reconciled("leased", 1);
      return toFinding({ ...judged, verdict: undefined, reason: "only its lease was lost" }, "taken in");
    case "wait":
      if (!round.dryRun && (await strays.adopt(stray.stamp, stray.place)))
        log.warn({ ...stray.place, operation, sandbox }, "container that Redis forgot goes to its provision");
      return toFinding({ ...judged, verdict: "wait" }, "waits");
    case "remove":
    case "later":
    case "keep": {
      const removeAt = removalAt(context, { since: entry.since, verdict: judgement.verdict });
      const isDue = round.removeOrphans ? stray.config.template !== true : removeAt <= round.now;
      if (!isDue) {
        const lookAt = Math.min(removeAt, round.now + LEFT_MS);
        return note(context, entry, { ...judged, verdict: judgement.verdict, lookAt }, { ...round, removeAt });
      }
      if (round.dryRun) return toFinding({ ...judged, verdict: judgement.verdict }, "to remove", removeAt);
      await remove(context, stray, { ...round, reason: judgement.reason });
      return toFinding({ ...judged, verdict: judgement.verdict }, "removed");
    }
    default:
      throw unreachable(judgement);
  }
}

async function readMemory({ strays, config }: WorkerContext): Promise<Memory> {
  const [losses, origin] = await Promise.all([strays.losses(), strays.origin()]);
  return { losses, origin, retentionMs: config.FLEET_RETENTION_HOURS * 3_600_000 };
}

/** Infinity: never without an operator's word. */
export function removalAt(
  { config }: Pick<WorkerContext, "config">,
  { since, verdict }: Pick<Quarantined, "since" | "verdict">,
): number {
  const { FLEET_STRAY_GRACE_SECONDS: soon, FLEET_ORPHAN_GRACE_HOURS: late } = config;
  if (verdict === "remove") return since + soon * 1_000;
  return verdict === "later" && late !== "never" ? since + late * 3_600_000 : Number.POSITIVE_INFINITY;
}

async function note(
  { strays, redis, keys, log }: WorkerContext,
  before: Entry,
  entry: Entry,
  { dryRun, removeAt = Number.POSITIVE_INFINITY }: { dryRun: boolean; removeAt?: number },
): Promise<Finding> {
  const { vmid, ...noted } = entry;
  const { node, operation, sandbox, team, verdict, reason = "" } = noted;
  if (!dryRun) {
    const at = Number.isFinite(removeAt) ? removeAt : undefined;
    await strays.note(vmid, { ...noted, removeAt: at });
    if (verdict !== before.verdict && operation && sandbox && team) {
      log.warn({ node, vmid, sandbox, reason }, "container that no sandbox owns is left for now");
      const data = { node, vmid, reason, removeAt: at };
      await emitEvent(redis, keys, { type: "container.quarantined", operation, sandbox, team, data });
    }
  }
  return toFinding(entry, removeAt === Number.POSITIVE_INFINITY ? "left" : "waits", removeAt);
}

function toFinding(entry: Entry, done: Finding["done"], removeAt?: number): Finding {
  const { node, vmid, name, sandbox, team, verdict, reason = "no sandbox has leased its VMID" } = entry;
  const at = removeAt === undefined || removeAt === Number.POSITIVE_INFINITY ? undefined : removeAt;
  return {
    what: verdict === "stranger" ? "stranger" : "orphan",
    node,
    vmid,
    name,
    sandbox,
    team,
    done,
    text: reason,
    at,
  };
}

/** Under a slot of its node, like every other task. */
async function remove(
  context: WorkerContext,
  { place, stamp, config: { lock } }: Stray,
  { signal, reason }: { signal: AbortSignal; reason: string },
): Promise<void> {
  const { slots, pve, tasks, config, strays, metrics, log } = context;
  const { node, vmid } = place;
  const { operation, sandbox, team } = stamp;
  const slot = slotOf.node(node);
  const holder = operation;
  let slotTaken = await slots.tryTake(node, config.FLEET_NODE_SLOTS, holder);
  if (typeof slotTaken === "object") {
    await adoptNode(context, node, slotTaken.server);
    slotTaken = await slots.tryTake(node, config.FLEET_NODE_SLOTS, holder);
  }
  if (slotTaken !== "taken")
    throw new FleetError("node_unavailable", `node ${node} has no slot free`, { facts: { node } });
  let upid: Upid | undefined;
  try {
    const leasedAt = performance.now();
    const taken = () =>
      new FleetError("vmid_taken", `VMID ${vmid} may have been leased meanwhile`, { facts: { node, vmid } });
    // A provision's clone would be refused there, and take the next.
    if (!(await strays.lease(vmid))) throw taken();
    // A process that slept must not remove what has come to stand there since.
    const guard = () => {
      if (performance.now() - leasedAt > LEASED_MS) throw taken();
    };
    log.warn({ ...place, operation, sandbox, reason }, "removing a container that nobody owns");
    upid = await pve.lxc(node, vmid).destroy({ purge: true, force: true }, { signal, guard });
    await tasks.wait(upid, { signal, kind: "destroy" });
    await strays.forget(vmid, { operation, sandbox, team, node, reason });
    metrics.reconciled("removed", 1);
  } catch (error) {
    // Where its task may run on, the slot is given back once nothing runs on the node.
    if (upid === undefined ? wasRefused(error) : hasEnded(error)) await slots.reap(slot, holder);
    // The next round finds it unlocked.
    if (lock !== undefined) await clearStaleLock(context, { place, lock, owner: operation }, { signal });
    throw error;
  }
  await slots.reap(slot, holder);
}
