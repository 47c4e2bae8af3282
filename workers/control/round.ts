/** A round of the reconcile: PVE's containers against the records, at the cost of one call to the cluster. */
import type { Finding } from "../../shared/state/errands.ts";
import type { WorkerContext } from "../context.ts";
import type { ClusterResource } from "../pve/api.ts";
import { settleOrphans } from "./orphans.ts";
import { rebuild } from "./rebuild.ts";

export interface RoundOptions {
  signal: AbortSignal;
  /** Looks and tells, and changes nothing. */
  dryRun?: boolean;
  /** An operator's word: containers in quarantine go now, also those that no rule would remove. */
  removeOrphans?: boolean;
  /** An operator's word: records are made anew of containers with our stamp that have none. */
  rebuild?: boolean;
  /** Called as the work goes on. */
  onProgress?: () => void;
}

export interface Round extends RoundOptions {
  dryRun: boolean;
  removeOrphans: boolean;
  /** When it began. */
  now: number;
  /** The whole cluster, nodes too. It lags, so what it shows is looked at before anything is done. */
  guests: readonly ClusterResource[];
}

export async function reconcile(context: WorkerContext, options: RoundOptions): Promise<Finding[]> {
  const { metrics, pve } = context;
  const begun = performance.now();
  const guests = await pve.clusterResources({}, options);
  const round: Round = { dryRun: false, removeOrphans: false, ...options, now: Date.now(), guests };
  // What is taken in is an orphan no more.
  const restored = options.rebuild ? await rebuild(context, round) : [];
  const findings = [...restored, ...(options.rebuild ? [] : await settleOrphans(context, round))];
  metrics.roundEnded((performance.now() - begun) / 1_000);
  return findings;
}
