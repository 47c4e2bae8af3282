/** A round of the reconcile: PVE's containers against the records, at the cost of one call to the cluster. */
import type { NodeName } from "../../shared/ids.ts";
import type { Finding } from "../../shared/state/errands.ts";
import type { WorkerContext } from "../context.ts";
import type { ClusterResource } from "../pve/api.ts";
import { forgetNode } from "./forget-node.ts";
import { settleOrphans } from "./orphans.ts";
import { rebuild } from "./rebuild.ts";
import { compareRecords } from "./standing.ts";

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

async function begin({ pve }: WorkerContext, options: RoundOptions): Promise<Round> {
  const guests = await pve.clusterResources({}, options);
  return { dryRun: false, removeOrphans: false, ...options, now: Date.now(), guests };
}

export async function reconcile(context: WorkerContext, options: RoundOptions): Promise<Finding[]> {
  const { metrics } = context;
  const begun = performance.now();
  const round = await begin(context, options);
  // What is taken in is an orphan no more.
  const restored = options.rebuild ? await rebuild(context, round) : [];
  const findings = [
    ...restored,
    ...(options.rebuild ? [] : await settleOrphans(context, round)),
    ...(options.rebuild ? [] : await compareRecords(context, round)),
  ];
  metrics.roundEnded((performance.now() - begun) / 1_000);
  return findings;
}

/** Ends the sandboxes of a node that is no more. */
export async function forget(context: WorkerContext, node: NodeName, options: RoundOptions): Promise<Finding[]> {
  return forgetNode(context, node, await begin(context, options));
}
