/** Makes the planned faults happen, and ends them all at the end. */
import { setTimeout as pause } from "node:timers/promises";
import type { FaultHandle } from "../pve/index.ts";
import type { ContainerView, TaskEntry } from "../pve/views.ts";
import { markRedis } from "../redis-rewind.ts";
import type { FaultKind, PlannedFault } from "./plan.ts";
import { VMIDS, type World } from "./world.ts";

const FORGOTTEN_MS = 1_000;
/** A task that is to be killed is waited for no longer. */
const KILL_WITHIN_MS = 3_000;
/** What follows from a write happens a moment later: a producer hears of it, PVE is asked. */
const FOLLOWS_MS = 500;

/** Ms since the epoch. */
export interface Span {
  from: number;
  to: number;
}

export interface Striker {
  /** Returns at once for faults that last; their end comes by itself. */
  strike(fault: PlannedFault): Promise<void>;
  /** Ends every fault in force: all workers run, Redis is up, PVE obeys. */
  calm(): Promise<void>;
  readonly counts: Readonly<Partial<Record<FaultKind, number>>>;
  /** When workers or Redis were hit, ms since the epoch. */
  readonly crashes: readonly number[];
  /** Whether Redis may have forgotten what was written in that time. */
  wasLost(span: Span): boolean;
}

export function createStriker({ crew, pve, ssh, redisServer, queues }: World, log: (line: string) => void): Striker {
  const pending = new Map<NodeJS.Timeout, () => unknown>();
  const later = (ms: number, end: () => unknown) => {
    const timer = setTimeout(() => {
      pending.delete(timer);
      end();
    }, ms);
    pending.set(timer, end);
  };
  const counts: Partial<Record<FaultKind, number>> = {};
  const crashes: number[] = [];
  const handles = new Set<FaultHandle>();
  let redisBack: Promise<void> = Promise.resolve();

  const lostSpans: Span[] = [];
  const killRedis = async (downMs: number, forget: () => Promise<void> = async () => {}) => {
    await redisServer.kill("SIGKILL");
    await forget();
    const back = Promise.withResolvers<void>();
    redisBack = back.promise;
    later(downMs, () => redisServer.restart().then(back.resolve, back.reject));
  };
  const rewindRedis = async (downMs: number) => {
    const from = Date.now();
    const goBack = await markRedis(redisServer);
    await pause(FORGOTTEN_MS);
    await killRedis(downMs, async () => {
      lostSpans.push({ from, to: Date.now() });
      await goBack();
    });
  };
  const choose = (rank: number, fits: (one: ContainerView) => boolean) => {
    const some = pve.containers().filter(fits);
    return some[rank % Math.max(1, some.length)];
  };
  const isOwn = ({ vmid }: ContainerView) => vmid >= VMIDS.first && vmid <= VMIDS.last;
  const lock = ({ rank, template }: { rank: number; template: boolean }) => {
    const chosen = choose(
      rank,
      (one) => one.template === template && one.lock === undefined && (template || isOwn(one)),
    );
    if (chosen) pve.faults.lock(chosen.vmid, "backup");
  };
  const lay = ({ rank, does }: { rank: number; does: "crash" | "rename" | "vanish" }) => {
    const chosen = choose(rank, (one) => isOwn(one) && one.lock === undefined && one.status === "running");
    if (!chosen) return;
    if (does === "rename") pve.faults.edit(chosen.vmid, { hostname: `renamed-${chosen.vmid}` });
    else pve.faults[does](chosen.vmid);
  };
  const killNext = (type: string) => {
    const fits = (task: TaskEntry) => task.type === type && task.endedAt === undefined;
    const kill = ({ upid }: TaskEntry) => pve.faults.killTask(upid);
    pve.waitForTask(fits, AbortSignal.timeout(KILL_WITHIN_MS)).then(kill, () => {}); // none came
  };
  const removeJobs = async (name: string, count: number) => {
    const jobs = await queues.get(name).getJobs(["waiting", "prioritized", "delayed"], 0, count - 1);
    // One that has just been taken is locked, and stays.
    await Promise.all(jobs.map((job) => job?.remove().catch(() => {})));
  };

  const run = async (fault: PlannedFault): Promise<void> => {
    switch (fault.kind) {
      case "kill-worker":
        crashes.push(Date.now());
        return crew.signal(fault.worker, "SIGKILL");
      case "stop-worker":
        crashes.push(Date.now());
        crew.signal(fault.worker, "SIGSTOP");
        return later(fault.ms, () => crew.signal(fault.worker, "SIGCONT"));
      case "kill-redis":
        crashes.push(Date.now());
        await redisBack;
        return killRedis(fault.downMs);
      case "rewind-redis":
        crashes.push(Date.now());
        await redisBack;
        return rewindRedis(fault.downMs);
      case "remove-jobs":
        return removeJobs(fault.queue, fault.count);
      case "obliterate":
        return queues.get(fault.queue).obliterate({ force: true });
      case "request": {
        const handle = pve.faults.request(fault.fault);
        handles.add(handle);
        return later(fault.ms, () => handle.release());
      }
      case "node": {
        pve.faults.node(fault.node, fault.state);
        if (fault.state === "refused") return later(fault.ms, () => pve.faults.node(fault.node, "online"));
        ssh?.node(fault.node).hang();
        return later(fault.ms, () => {
          pve.faults.node(fault.node, "online");
          ssh?.node(fault.node).resume();
        });
      }
      case "task":
        handles.add(pve.faults.task(fault.fault));
        return;
      case "kill-task":
        return killNext(fault.type);
      case "lock":
        return lock(fault);
      case "hand":
        return lay(fault);
      case "reboot":
        return pve.faults.reboot(fault.node);
    }
  };

  return {
    counts,
    crashes,
    wasLost: (span) => lostSpans.some(({ from, to }) => span.to >= from - FOLLOWS_MS && span.from <= to + FOLLOWS_MS),
    async strike(fault) {
      counts[fault.kind] = (counts[fault.kind] ?? 0) + 1;
      log(`fault ${JSON.stringify(fault)}`);
      // Redis may be down: what needs it goes on when it is back, and is tried for no longer than that.
      await run(fault).catch((error: unknown) => log(`fault ${fault.kind}: ${String(error)}`));
    },
    async calm() {
      for (const [timer, end] of pending) {
        clearTimeout(timer);
        end();
      }
      pending.clear();
      await redisBack;
      for (const handle of handles) handle.release();
      pve.faults.clear();
      crew.wake();
      // An obliterate that was cut short leaves its queue paused.
      for (const name of ["place", "control", ...pve.nodes.flatMap((node) => [`node-${node}`, `exec-${node}`])])
        await queues.get(name).resume();
    },
  };
}
