/** One chaos run: traffic and faults side by side, then calm, then the comparison. */
import { setTimeout as pause } from "node:timers/promises";
import { FleetError } from "../../producers/index.ts";
import { isEnded, type OperationRecord } from "../../shared/state/records.ts";
import { until } from "../integration/fleet/until.ts";
import {
  doubledNow,
  type Findings,
  findDrift,
  findForgotten,
  findLeaked,
  findLimitViolations,
  findLost,
  findStuckLeases,
  loadRecords,
} from "./compare.ts";
import { startHuman } from "./human.ts";
import { type FaultKind, planFaults } from "./plan.ts";
import { seeded } from "./random.ts";
import { createStriker, type Striker } from "./strike.ts";
import { startTraffic, type Traffic } from "./traffic.ts";
import { NODES, startWorld, TEMPLATE, type World } from "./world.ts";

export interface ChaosOptions {
  seed: number;
  operations: number;
  workers: number;
  minutes: number;
  ssh: boolean;
  kinds: ReadonlySet<FaultKind>;
  logs: string | undefined;
  log: (line: string) => void;
}

export interface ChaosReport {
  seed: number;
  ssh: boolean;
  operations: number;
  succeeded: number;
  failed: Record<string, number>;
  lost: number;
  doubled: number;
  leaked: number;
  stuckLeases: number;
  limitViolations: number;
  /** Records that PVE still disagrees with. */
  drift: number;
  /** Provisions that the pool served. */
  warm: number;
  /** From the first crash (worker or Redis) in an operation's run to its end, at most. */
  longestRecoveryMs: number;
  longestRecoveryOf: string;
  /** Sandboxes whose container only a human can clear; none with SSH. */
  quarantined: number;
  /** Accepted in a second that Redis lost, and unknown since. */
  forgotten: number;
  faults: Partial<Record<FaultKind, number>>;
  durationMs: number;
  findings: Findings & { odd: string[] };
}

const PRODUCERS = 24;
/** An undo gives a node ten minutes to come back; with all faults gone nothing should need that. */
const DRAIN_MS = 180_000;
/** A slot without a beat is looked at after 30 s, every 5 s; so are containers that nobody owns. */
const SETTLE_MS = 60_000;

export async function runChaos(options: ChaosOptions): Promise<ChaosReport> {
  const { seed, operations, log } = options;
  const begun = performance.now();
  await using world = await startWorld(options);
  using _human = startHuman(world.pve, log);
  const striker = createStriker(world, log);
  const doubled = new Set<string>();
  const unwatch = world.pve.onTaskEnd(() => {
    // The reconcile removes what Redis forgot.
    for (const { line, clonedAt } of doubledNow(world.pve))
      if (!clonedAt.every((at) => striker.wasLost({ from: at, to: at }))) doubled.add(line);
  });
  await until(() => fillPool(world), "the inventory", SETTLE_MS);
  const timeUp = AbortSignal.timeout(options.minutes * 60_000);
  const random = seeded(seed).fork();
  const traffic = startTraffic({ random, teams: world.teams, operations, producers: PRODUCERS, signal: timeUp });
  // A producer that waits for an answer that never comes must not keep the faults going.
  const stopped = new Promise<void>((resolve) => timeUp.addEventListener("abort", () => resolve(), { once: true }));
  await strikeUntil(Promise.race([traffic.nearlyOver, traffic.over, stopped]), striker, options);
  log(`${traffic.accepted.size} operations sent, ${traffic.answered.size} answered; faults end`);
  await striker.calm();
  await world.operator.pools.remove(TEMPLATE);
  await drain(world, traffic, log);
  const isSettled = async () => {
    const found = await loadRecords(world, traffic.accepted.keys());
    const left = [
      ...findLeaked(world.pve, found),
      ...doubledNow(world.pve),
      ...(await findStuckLeases(world, found)),
      ...findDrift(world.pve, found),
      ...found.sandboxes.filter(({ state }) => state === "warm"),
    ];
    return left.length === 0;
  };
  await until(isSettled, "the return of all leases, and records that PVE agrees with", SETTLE_MS).catch(() => {});
  unwatch();
  const records = await loadRecords(world, traffic.accepted.keys());
  const forgotten = findForgotten(traffic.accepted, records, striker.wasLost);
  const known = new Set([...traffic.accepted.keys()].filter((id) => !forgotten.has(id)));
  const unanswered = [...traffic.accepted.keys()].filter((id) => !traffic.answered.has(id));
  const findings = {
    lost: findLost(known, records),
    doubled: [...new Set([...doubled, ...doubledNow(world.pve).map(({ line }) => line)])],
    leaked: findLeaked(world.pve, records),
    stuckLeases: await findStuckLeases(world, records),
    limitViolations: findLimitViolations(world.pve),
    drift: findDrift(world.pve, records),
    odd: [...unanswered.map((id) => `operation ${id} has ended and its producer was not told`), ...world.crew.ownEnds],
  };
  const all = [...records.operations.values()];
  const recovery = longestRecovery(all, striker.crashes);
  return {
    seed,
    ssh: options.ssh,
    operations: traffic.accepted.size,
    succeeded: all.filter(({ status }) => status === "succeeded").length,
    failed: countCodes(all),
    lost: findings.lost.length,
    doubled: findings.doubled.length,
    leaked: findings.leaked.length,
    stuckLeases: findings.stuckLeases.length,
    limitViolations: findings.limitViolations.length,
    drift: findings.drift.length,
    warm: all.filter(({ result }) => isWarm(result)).length,
    longestRecoveryMs: recovery.ms,
    longestRecoveryOf: recovery.of,
    quarantined: records.sandboxes.filter(({ state }) => state === "quarantined").length,
    forgotten: forgotten.size,
    faults: striker.counts,
    durationMs: Math.round(performance.now() - begun),
    findings,
  };
}

/** How much went wrong; 0 is what a run must come to. */
export const countWrongs = ({
  ssh,
  lost,
  doubled,
  leaked,
  stuckLeases,
  limitViolations,
  drift,
  quarantined,
}: ChaosReport): number => lost + doubled + leaked + stuckLeases + limitViolations + drift + (ssh ? quarantined : 0);

/** Fewer members than producers, so that provisions are served both ways. False: no worker has read the cluster yet. */
async function fillPool({ operator }: World): Promise<boolean> {
  try {
    await operator.pools.set(TEMPLATE, { min: 3, max: 6 });
    return true;
  } catch (error) {
    if (error instanceof FleetError && error.code === "node_unavailable") return false;
    throw error;
  }
}

const isWarm = (result: unknown) => (result as { warm?: boolean } | undefined)?.warm === true; // as a provision's says

/** The plan's faults at the plan's times, until the traffic is nearly over. */
async function strikeUntil(end: Promise<void>, striker: Striker, options: ChaosOptions): Promise<void> {
  const over = new AbortController();
  const ended = end.finally(() => over.abort());
  for (const { afterMs, fault } of planFaults({ ...options, nodes: NODES })) {
    await pause(afterMs, undefined, { signal: over.signal }).catch(() => {});
    if (over.signal.aborted) break;
    await striker.strike(fault);
  }
  await ended;
}

/** Waits until every operation has ended, has been told, and nothing runs at PVE any more. */
async function drain({ redis, keys, pve }: World, traffic: Traffic, log: (line: string) => void): Promise<void> {
  const open = () => redis.zcard(keys.open);
  const patience = AbortSignal.timeout(DRAIN_MS);
  const over = traffic.over.then(() => true);
  const soon = () => pause(5_000, false, { ref: false });
  // What producers did wrong is thrown here.
  while (!(await Promise.race([over, soon()])) && !patience.aborted) log(`${await open()} operations are still open`);
  const ended = async () => patience.aborted || (await open()) === 0;
  await until(ended, "the end of every operation", DRAIN_MS).catch(() => {});
  await until(() => traffic.answered.size === traffic.accepted.size, "every answer", 10_000).catch(() => {});
  await until(() => pve.tasks().every(({ endedAt }) => endedAt !== undefined), "quiet at PVE", 30_000).catch(() => {});
}

function countCodes(operations: readonly OperationRecord[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const { status, error } of operations) {
    if (!isEnded(status) || status === "succeeded") continue;
    const code = error?.code ?? "none";
    counts[code] = (counts[code] ?? 0) + 1;
  }
  return counts;
}

interface Recovery {
  ms: number;
  of: string;
}

function longestRecovery(operations: readonly OperationRecord[], crashes: readonly number[]): Recovery {
  const recoveries = operations.flatMap(({ id, kind, startedAt, endedAt, claims, attempts, seq, timings }) => {
    if (startedAt === undefined || endedAt === undefined) return [];
    const first = crashes.find((at) => at > startedAt && at < endedAt);
    const met = crashes.filter((at) => at > startedAt && at < endedAt).length;
    const of = `${kind} ${id}: ${met} crashes, ${claims} runs, ${attempts} failed, ${seq} queues, ${JSON.stringify(timings)}`;
    return first === undefined ? [] : [{ ms: Math.round(endedAt - first), of }];
  });
  return recoveries.sort((a, b) => b.ms - a.ms)[0] ?? { ms: 0, of: "none" };
}
