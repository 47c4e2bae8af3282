/** What this process counts for Prometheus, by its conventions: base units, `_total`, labels of few values. */
import { Counter, collectDefaultMetrics, Histogram, Registry } from "prom-client";
import type { FleetErrorCode } from "../shared/errors.ts";
import type { JobName } from "../shared/jobs/index.ts";
import type { RequestReport } from "./pve/http.ts";

/** Fits what takes from a command's milliseconds to a full clone's minutes. */
const SECONDS = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900];
const REQUEST_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** One run's end of an operation. Times are ms. */
export interface EndedOperation {
  kind: JobName;
  /** `ok`, or why it did not succeed. */
  code: "ok" | FleetErrorCode;
  node: string | undefined;
  acceptedAt: number;
  timings: Readonly<Record<string, number>>;
}

export type ReconcileAction =
  | "quarantined"
  | "removed"
  | "leased"
  | "lost"
  | "drift"
  | "restarted"
  | "restored"
  | "locked"
  | "unlocked";

export interface Metrics {
  readonly registry: Registry;
  operationEnded(operation: EndedOperation): void;
  pveAnswered(report: RequestReport): void;
  /** `ms`: how long a task's end may have gone unnoticed. */
  taskEnded(ms: number): void;
  /** `outcome`: what the gate decided about a request, such as `forward`. */
  gateDecided(outcome: string): void;
  gateWoke(): void;
  leftToNewer(): void;
  /**
   * What the reconcile did, to how many: `quarantined`, `removed`, `leased` (only its lease was lost), `lost`, `drift`, `restarted`,
   * `restored`, `locked` (told of), `unlocked`.
   */
  reconciled(action: ReconcileAction, count: number): void;
  roundEnded(seconds: number): void;
}

export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];
  const operations = new Counter({
    name: "fleet_operations_total",
    help: "Operations that this process ended, by error code (ok: succeeded).",
    labelNames: ["kind", "code", "node"],
    registers,
  });
  const durations = new Histogram({
    name: "fleet_operation_duration_seconds",
    help: "From an operation's acceptance to its end.",
    labelNames: ["kind"],
    buckets: SECONDS,
    registers,
  });
  const steps = new Histogram({
    name: "fleet_operation_step_duration_seconds",
    help: "Time that an operation spent in a step, its retries included; waited: for slots.",
    labelNames: ["kind", "step"],
    buckets: SECONDS,
    registers,
  });
  const requests = new Counter({
    name: "fleet_pve_requests_total",
    help: "Requests to the API of Proxmox VE (status 0: no answer).",
    labelNames: ["method", "endpoint", "node", "status"],
    registers,
  });
  const requestSeconds = new Histogram({
    name: "fleet_pve_request_duration_seconds",
    help: "Time until the API of Proxmox VE answered.",
    labelNames: ["method", "endpoint"],
    buckets: REQUEST_SECONDS,
    registers,
  });
  const taskLag = new Histogram({
    name: "fleet_pve_task_lag_seconds",
    help: "How long a task's end may have gone unnoticed: since it was last seen running, or since its start.",
    buckets: REQUEST_SECONDS,
    registers,
  });
  const decisions = new Counter({
    name: "fleet_gate_requests_total",
    help: "Requests to public URLs by what the gate decided.",
    labelNames: ["outcome"],
    registers,
  });
  const wakes = new Counter({
    name: "fleet_gate_wakes_total",
    help: "Sandboxes that requests have begun to wake.",
    registers,
  });
  const newer = new Counter({
    name: "fleet_left_to_newer_total",
    help: "Times that this process left an operation of a newer version to newer workers.",
    registers,
  });
  const reconciled = new Counter({
    name: "fleet_reconcile_actions_total",
    help: "What the reconcile did about differences between PVE and the records.",
    labelNames: ["action"],
    registers,
  });
  const rounds = new Histogram({
    name: "fleet_reconcile_round_duration_seconds",
    help: "Duration of a round of the reconcile, its removals included.",
    buckets: SECONDS,
    registers,
  });
  return {
    registry,
    operationEnded({ kind, code, node = "", acceptedAt, timings }) {
      operations.inc({ kind, code, node });
      durations.observe({ kind }, Math.max(0, Date.now() - acceptedAt) / 1_000);
      for (const [step, ms] of Object.entries(timings)) steps.observe({ kind, step }, ms / 1_000);
    },
    pveAnswered({ method, endpoint, node = "", status, ms }) {
      requests.inc({ method, endpoint, node, status });
      requestSeconds.observe({ method, endpoint }, ms / 1_000);
    },
    taskEnded: (ms) => taskLag.observe(ms / 1_000),
    gateDecided: (outcome) => decisions.inc({ outcome }),
    gateWoke: () => wakes.inc(),
    leftToNewer: () => newer.inc(),
    reconciled: (action, count) => reconciled.inc({ action }, count),
    roundEnded: (seconds) => rounds.observe(seconds),
  };
}

/** The process' own: CPU, memory, event loop. */
export function addProcessMetrics(registry: Registry): void {
  collectDefaultMetrics({ register: registry });
  // Gauges that are named like counters; the same are there by kind.
  for (const what of ["handles", "requests", "resources"]) registry.removeSingleMetric(`nodejs_active_${what}_total`);
}
