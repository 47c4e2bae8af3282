/**
 * Locks that no task holds: a task that was killed, or whose node went down, leaves one, and every change is refused from then
 * on. PVE's list shows locks as they are. One that stays, on a container of ours that nothing is at work on or on a template that
 * we clone, is looked at: where no task can have set it, it is told with the command that clears it, or cleared over SSH.
 */
import { z } from "zod";
import { FleetError, toFleetError } from "../../shared/errors.ts";
import { NodeName, type SandboxId, Vmid } from "../../shared/ids.ts";
import type { Finding } from "../../shared/state/errands.ts";
import { emitEvent } from "../../shared/state/events.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { Standing } from "../../shared/state/standing.ts";
import type { WorkerContext } from "../context.ts";
import type { ClusterResource, LxcConfig } from "../pve/api.ts";
import type { Place } from "../sandbox/look.ts";
import { clearStaleLock, isWorkedOn, mayClear, seesAllTasks } from "../sandbox/stale-lock.ts";
import { readOwn } from "./own.ts";
import type { Round } from "./round.ts";

/** Longer than most tasks; and so long after a look that found it held, or told of it, the next. */
const PATIENCE_MS = 60_000;
/** So often in a row no task is seen that holds it: between two clones of a template there may be a moment without one. */
const LOOKS = 2;
/** By `pct mount`: a human's, without a task. */
const HELD = "mounted";

const Seen = z.object({
  node: NodeName,
  lock: z.string(),
  /** ms since the epoch. */
  since: z.number(),
  lookAt: z.number(),
  /** Looks in a row that found no task. */
  looks: z.number(),
  /** The token does not see other people's tasks, so one may hold it all the same. */
  blind: z.boolean().default(false),
});
type Seen = z.output<typeof Seen>;

interface Locked {
  place: Place;
  lock: string;
  /** Absent: a template of the cluster that sandboxes are cloned from. */
  sandbox: SandboxId | undefined;
}

export async function settleLocks(
  context: WorkerContext,
  round: Round,
  standing: readonly Standing[],
): Promise<Finding[]> {
  const { redis, keys, log } = context;
  const locked = listLocked(context, round.guests, standing);
  const known = await redis.hgetall(keys.locks);
  const gone = Object.keys(known).filter((vmid) => !locked.has(Vmid.parse(Number(vmid))));
  if (gone.length > 0 && !round.dryRun) await redis.hdel(keys.locks, ...gone);
  const findings: Finding[] = [];
  for (const [vmid, one] of locked) {
    const fresh = {
      node: one.place.node,
      lock: one.lock,
      since: round.now,
      lookAt: round.now + PATIENCE_MS,
      looks: 0,
      blind: false,
    };
    const noted = parse(known[vmid]);
    const seen = noted?.node === fresh.node && noted.lock === fresh.lock ? noted : fresh;
    try {
      const finding =
        seen.lookAt > round.now && !round.dryRun ? tell(one, seen) : await look(context, one, seen, round);
      if (finding) findings.push(finding);
      if (seen === fresh && !round.dryRun) await redis.hset(keys.locks, vmid, JSON.stringify(fresh));
    } catch (error) {
      round.signal.throwIfAborted();
      const { code } = toFleetError(error);
      log.debug({ ...one.place, code }, "could not look at a lock yet");
    }
  }
  return findings;
}

function parse(text: string | undefined): Seen | undefined {
  if (text === undefined) return undefined;
  return Seen.safeParse(JSON.parse(text)).data;
}

function listLocked(
  { inventory }: WorkerContext,
  guests: readonly ClusterResource[],
  standing: readonly Standing[],
): Map<Vmid, Locked> {
  const locked = new Map<number | undefined, ClusterResource>(
    guests.flatMap((one) => (one.type === "lxc" && one.lock !== undefined ? [[one.vmid, one]] : [])),
  );
  const found = new Map<Vmid, Locked>();
  if (locked.size === 0) return found;
  const add = (vmid: number, sandbox?: SandboxId) => {
    const { node, lock = "", vmid: id } = locked.get(vmid) ?? {};
    if (id === undefined || node === undefined || lock === HELD) return;
    found.set(id, { place: { node, vmid: id }, lock, sandbox });
  };
  for (const { vmid } of inventory.current().replicas) add(vmid);
  for (const { vmid, id } of standing) add(vmid, id);
  return found;
}

/** Of one that is not due to be looked at; null: it is young, or was seen to be held. */
function tell({ place, sandbox, lock }: Locked, seen: Seen): Finding | null {
  return seen.looks < LOOKS ? null : toFinding({ place, sandbox, lock }, seen, "left");
}

async function look(context: WorkerContext, one: Locked, seen: Seen, round: Round): Promise<Finding | null> {
  const { redis, keys, store } = context;
  const { place, sandbox } = one;
  const record = sandbox === undefined ? undefined : await store.loadSandbox(sandbox);
  // An operation that is at work on it looks itself.
  if (record === null || (record && (await redis.llen(keys.changes(record.id))) > 0)) return null;
  const config = record ? await readOwn(context, record, place, round) : await readAny(context, place, round);
  if (config === null || config === "foreign" || config.lock === undefined) return null;
  const isHeld = await isWorkedOn(context, place, config.lock, round);
  const looks = isHeld ? 0 : seen.looks + 1;
  const isStale = looks >= LOOKS;
  const now = { ...seen, looks, blind: isStale && !(await seesAllTasks(context, place.node, round)) };
  if (isStale && record && !now.blind && mayClear(context, place, config.lock)) {
    if (round.dryRun) return toFinding(one, now, "to clear");
    if (await clearStaleLock(context, { place, lock: config.lock, owner: record.operation }, round)) {
      await redis.hdel(keys.locks, String(place.vmid));
      return report(context, one, { seen: now, record, done: "cleared" });
    }
  }
  if (!round.dryRun) {
    now.lookAt = isHeld || isStale ? round.now + PATIENCE_MS : round.now;
    await redis.hset(keys.locks, String(place.vmid), JSON.stringify(now));
  }
  if (isHeld) return null;
  const isNews = looks === LOOKS && !now.blind && !round.dryRun;
  return isNews
    ? report(context, one, { seen: now, record, done: "left" })
    : toFinding(one, now, isStale ? "left" : "waits");
}

async function readAny({ pve }: WorkerContext, { node, vmid }: Place, round: Round): Promise<LxcConfig | null> {
  try {
    return await pve.lxc(node, vmid).config(round);
  } catch (error) {
    if (error instanceof FleetError && ["container_missing", "forbidden"].includes(error.code)) return null;
    throw error;
  }
}

/** Once. */
async function report(
  { redis, keys, metrics, log }: WorkerContext,
  one: Locked,
  { seen, record, done }: { seen: Seen; record: SandboxRecord | undefined; done: "cleared" | "left" },
): Promise<Finding> {
  const finding = toFinding(one, seen, done);
  const { node, vmid, text } = finding;
  metrics.reconciled(done === "cleared" ? "unlocked" : "locked", 1);
  log.warn({ node, vmid, sandbox: record?.id, lock: one.lock }, text);
  if (record) {
    const { id: sandbox, operation, team } = record;
    const type = done === "cleared" ? "container.unlocked" : "container.locked";
    await emitEvent(redis, keys, { type, operation, sandbox, team, data: { node, vmid, lock: one.lock, text } });
  }
  return finding;
}

function toFinding({ place, sandbox, lock }: Locked, { since, blind }: Seen, done: Finding["done"]): Finding {
  const { node, vmid } = place;
  const unlock = `on ${node}: pct unlock ${vmid}`;
  const told = blind
    ? `; without Sys.Audit on /nodes/${node} the token sees its own tasks alone: if no backup or other task works on it, ${unlock}`
    : `, and no task works on it; ${unlock}`;
  const wayOut = done === "cleared" ? ", and no task worked on it; it is cleared" : told;
  return {
    what: "lock",
    node,
    vmid,
    sandbox,
    done,
    text: `locked (${lock}) since ${new Date(since).toISOString()}${wayOut}`,
  };
}
