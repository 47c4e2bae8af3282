/** What a container does now: runs, is frozen, or is stopped. */
import { FleetError } from "../../shared/errors.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { Undone } from "../handlers/handler.ts";
import type { Call } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { readContainerState } from "../ssh/node-tools.ts";
import { containerOf, type Place } from "./look.ts";

export type Standing = "running" | "paused" | "stopped";

export async function readStanding(run: Run, call: Call): Promise<Standing> {
  const { place, lxc } = containerOf(run);
  const { status } = await lxc.status(call);
  if (status === "stopped") return status;
  return (await isFrozen(run, place, call)) ? "paused" : "running";
}

/** Without SSH the record is believed. */
export async function isFrozen(run: Run, place: Place, call: Call): Promise<boolean> {
  if (run.context.shell === null) return run.sandbox.state === "paused";
  const state = await readContainerState(run.context.shell, place, call);
  return state === "FROZEN" || state === "FREEZING";
}

/** A stopped container has no address: DHCP may give it to another. */
export function stoppedWrite({ sandbox, context: { keys } }: Run): Write {
  const also = sandbox.address === undefined ? [] : [["HDEL", keys.addresses, sandbox.address]];
  return { sandbox: { state: "stopped", address: null }, also, patch: { settles: ["stop", "pause"] } };
}

/**
 * For the undo of what starts or stops: the task ends with its operation, since the sandbox's next one may begin at once;
 * the record says what stands.
 */
export async function tellStanding(run: Run): Promise<Undone> {
  if (run.operation.step === undefined) return { undone: [] };
  try {
    const state = await readStanding(run, run.undoing());
    return { undone: [], write: state === "stopped" ? stoppedWrite(run) : { sandbox: { state } } };
  } catch (error) {
    // A node that can't be asked must not keep the operation open.
    if (error instanceof FleetError && error.code !== "lock_lost") return { undone: [] };
    throw error;
  }
}
