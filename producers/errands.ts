/** What the fleet's own clockwork does when an operator asks: rounds of the reconcile, and the end of a node. */
import { setTimeout as pause } from "node:timers/promises";
import { FleetError, fromErrorRecord } from "../shared/errors.ts";
import { createErrands, type ErrandInput, type Finding } from "../shared/state/errands.ts";
import type { Parts } from "./parts.ts";

export interface ErrandOptions {
  /** Called with how many are done with so far; undefined while no worker has begun. */
  onProgress?: ((done: number | undefined) => void) | undefined;
  /** Longest wait in ms; an hour when absent. What was asked for goes on after it. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

export interface ReconcileOptions extends ErrandOptions {
  /** Only looks. */
  dryRun?: boolean | undefined;
  /** Records are made anew of containers with the fleet's stamp that have none, as after Redis lost its data. */
  rebuild?: boolean | undefined;
  /** Containers in quarantine go now, also those that no rule would remove; templates never. */
  removeOrphans?: boolean | undefined;
}

/**
 * Compares PVE with the records, now; resolves with what was found and what was done about it.
 * Throws `forbidden` in a client of one team, `timeout`, and what kept the workers from doing it.
 */
export type Reconcile = (options?: ReconcileOptions) => Promise<Finding[]>;

const LOOK_MS = 300;
const PATIENCE_MS = 3_600_000;

export function createReconcile(parts: Parts): Reconcile {
  return ({ dryRun = false, rebuild = false, removeOrphans = false, ...options } = {}) => {
    if (rebuild && removeOrphans) {
      const text = "rebuild: takes in what removeOrphans removes; ask for one of them";
      throw new FleetError("invalid_input", text, { facts: { fields: ["rebuild", "removeOrphans"] } });
    }
    return runErrand(parts, { kind: "reconcile", dryRun, rebuild, removeOrphans }, options);
  };
}

export async function runErrand(parts: Parts, input: ErrandInput, options: ErrandOptions): Promise<Finding[]> {
  const { link, keys, team } = parts;
  const { onProgress, timeoutMs = PATIENCE_MS, signal } = options;
  if (team !== undefined) {
    const text = `this is about all teams: leave the team ${team} (FLEET_TEAM) out for it`;
    throw new FleetError("forbidden", text, { facts: { team } });
  }
  const begun = performance.now();
  const id = await link.request((redis) => createErrands(redis, keys).ask(input));
  let told: number | undefined | null = null;
  while (true) {
    signal?.throwIfAborted();
    const errand = await link.request((redis) => createErrands(redis, keys).load(id));
    if (errand.status === "succeeded") return errand.findings ?? [];
    if (errand.status === "failed" && errand.error) throw fromErrorRecord(errand.error);
    const done = errand.status === "queued" ? undefined : errand.done;
    if (done !== told) onProgress?.(done);
    told = done;
    if (performance.now() - begun > timeoutMs) {
      const why = errand.status === "queued" ? "no worker has begun with it; does one run?" : "it goes on";
      throw new FleetError("timeout", `not done within ${timeoutMs} ms: ${why}`);
    }
    await pause(LOOK_MS, undefined, { signal }).catch(() => {});
  }
}
