/** What goes wrong and when: an endless plan that only the seed decides. Pure. */
import type { NodeState, RequestFault, TaskFault } from "../pve/faults.ts";
import { type Random, seeded } from "./random.ts";

export type PlannedFault =
  | { kind: "kill-worker"; worker: number }
  /** SIGSTOP for longer than the lock lives, then SIGCONT. */
  | { kind: "stop-worker"; worker: number; ms: number }
  | { kind: "kill-redis"; downMs: number }
  /** Redis dies and comes back as it was a second earlier: what `everysec` may lose with the machine. */
  | { kind: "rewind-redis"; downMs: number }
  /** Waiting jobs removed by hand. */
  | { kind: "remove-jobs"; queue: string; count: number }
  | { kind: "obliterate"; queue: string }
  /** Taken back after `ms` when it has not hit until then; what hangs is let go. */
  | { kind: "request"; fault: RequestFault; ms: number }
  | { kind: "node"; node: string; state: NodeState; ms: number }
  | { kind: "task"; fault: TaskFault }
  /** The next task of this type that runs dies hard (SIGKILL), and its locks stay. */
  | { kind: "kill-task"; type: string }
  /** A lock as a backup leaves it, on a container of ours (by rank) or on a template; a human clears it. */
  | { kind: "lock"; rank: number; template: boolean }
  /** Somebody's hand on a container of ours (by rank): it ends, is renamed or removed. */
  | { kind: "hand"; rank: number; does: "crash" | "rename" | "vanish" }
  /** Its containers stop, whatever they should. */
  | { kind: "reboot"; node: string };
export type FaultKind = PlannedFault["kind"];

/** How often each happens, relative to the others. */
const WEIGHTS: Readonly<Record<FaultKind, number>> = {
  "kill-worker": 4,
  "stop-worker": 1.5,
  "kill-redis": 1.5,
  "rewind-redis": 2,
  "remove-jobs": 3,
  obliterate: 1,
  request: 9,
  node: 1.5,
  task: 4,
  "kill-task": 1.5,
  lock: 1,
  hand: 2,
  reboot: 0.7,
};
export const FAULT_KINDS = Object.keys(WEIGHTS) as [FaultKind, ...FaultKind[]]; // Object.keys loses the literal keys

export interface PlanOptions {
  seed: number;
  workers: number;
  nodes: readonly [string, ...string[]];
  kinds: ReadonlySet<FaultKind>;
}

/** Faults with the milliseconds to wait before each. Those of some kinds alone come when they would among all others. */
export function* planFaults({
  seed,
  workers,
  nodes,
  kinds,
}: PlanOptions): Generator<{ afterMs: number; fault: PlannedFault }> {
  const random = seeded(seed);
  if (kinds.size === 0) return;
  let afterMs = 0;
  while (true) {
    afterMs += random.between(100, 1_200);
    const kind = random.weighted(WEIGHTS);
    const fault = planFault(kind, { random: random.fork(), workers, nodes });
    if (!kinds.has(kind)) continue;
    yield { afterMs, fault };
    afterMs = 0;
  }
}

interface Scope {
  random: Random;
  workers: number;
  nodes: readonly [string, ...string[]];
}

function planFault(kind: FaultKind, { random, workers, nodes }: Scope): PlannedFault {
  const worker = random.between(0, workers - 1);
  const node = random.pick(nodes);
  switch (kind) {
    case "kill-worker":
      return { kind, worker };
    case "stop-worker":
      return { kind, worker, ms: random.between(7_000, 12_000) };
    case "kill-redis":
    case "rewind-redis":
      return { kind, downMs: random.between(100, 4_000) };
    case "remove-jobs":
      return { kind, queue: random.pick(["place", `node-${node}`, `exec-${node}`]), count: random.between(1, 6) };
    case "obliterate":
      return { kind, queue: random.pick(["place", `node-${node}`, `exec-${node}`, "control"]) };
    case "request":
      return { kind, fault: planRequest(random), ms: random.between(2_000, 8_000) };
    case "node":
      return { kind, node, state: random.pick(["unreachable", "refused", "hung"]), ms: random.between(2_000, 12_000) };
    case "task":
      return { kind, fault: planTask(random) };
    case "kill-task":
      return { kind, type: random.weighted({ vzclone: 4, vzsnapshot: 2, vzstart: 1, vzdestroy: 1 }) };
    case "lock":
      return { kind, rank: random.between(0, 100), template: random.chance(0.3) };
    case "hand":
      return { kind, rank: random.between(0, 100), does: random.weighted({ crash: 3, rename: 2, vanish: 1 }) };
    case "reboot":
      return { kind, node };
    default:
      throw new Error(`no plan for ${kind satisfies never}`);
  }
}

const CLONE = "/lxc/\\d+/clone$";

function planRequest(random: Random): RequestFault {
  const times = random.between(1, 3);
  const where = random.pick([
    { method: "POST", path: CLONE },
    { method: "POST", path: "/status/start$" },
    { method: "POST" },
    { method: "DELETE" },
    { method: "PUT" },
    { method: "GET", path: "/tasks" },
    { method: "GET" },
    {},
  ]);
  switch (random.weighted({ lose: 4, delay: 3, cut: 2, hang: 2, html: 0.5, empty: 0.5, "no-worker": 1.5 })) {
    case "lose":
      return { kind: "lose-reply", as: random.pick([595, 596, "cut"]), times, ...where };
    case "delay":
      return { kind: "delay", ms: random.between(300, 9_000), times, ...where };
    case "cut":
      return { kind: "cut", times, ...where };
    case "hang":
      return { kind: "hang", times, ...where };
    case "html":
      return { kind: "html", times, ...where };
    case "empty":
      return { kind: "empty", times, ...where };
    case "no-worker":
      return { kind: "no-worker", times: 1, method: "POST", path: CLONE };
  }
}

function planTask(random: Random): TaskFault {
  const type = random.pick(["vzclone", "vzstart", "vzsnapshot", "vzdestroy", "vzstop"]);
  const leaveLocks = type === "vzclone" && random.chance(0.3);
  return {
    type,
    text: "lvcreate failed: exit code 5",
    times: random.between(1, 2),
    ...(leaveLocks ? { leaveLocks } : {}),
  };
}
