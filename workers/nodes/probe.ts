import { type FleetErrorCode, toFleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import type { PveApi } from "../pve/api.ts";
import { PROBE_MS } from "./breaker.ts";

const SILENCE: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>(["node_unreachable", "pve_bad_reply", "timeout"]);

/**
 * Whether the node's daemon answers, by a read that any token may make and that goes the whole way to it, which
 * `/nodes/{node}/status` and `/version` do not. Throws the signal's reason.
 */
export async function answers(pve: Pick<PveApi, "list">, node: NodeName, signal: AbortSignal): Promise<boolean> {
  try {
    await pve.list(node, { signal, probe: true, deadlineMs: PROBE_MS * 0.8 });
    return true;
  } catch (error) {
    signal.throwIfAborted();
    return !SILENCE.has(toFleetError(error).code);
  }
}
