import { FleetError, unreachable } from "../../shared/errors.ts";
import type { JobOutput } from "../../shared/jobs/index.ts";
import type { Write } from "../../shared/state/operations.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { LxcApi } from "../pve/api.ts";
import type { Upid } from "../pve/upid.ts";
import type { Run } from "../run/run.ts";
import { containerOf, ownContainer } from "../sandbox/look.ts";
import { startContainer } from "../sandbox/power.ts";
import { awaitReady } from "../sandbox/ready.ts";
import { runTask } from "../sandbox/task.ts";
import type { Handler } from "./handler.ts";

export const power: Handler<"power"> = {
  async run(run) {
    const { place, lxc } = await ownContainer(run);
    const { status } = await lxc.status(run.call);
    const wanted = run.input.action === "start" || run.input.action === "reboot" ? "running" : "stopped";
    const begun = run.operation.step !== undefined;
    const changed = begun || run.input.action === "reboot" || status !== wanted;
    if (changed) {
      await run.withSlot(slotOf.node(place.node), run.context.config.FLEET_NODE_SLOTS, () => act(run, lxc, status));
    }
    if (wanted === "running" && changed) {
      const { execToken } = await run.context.secrets.get(run.sandbox.id);
      await awaitReady(run, execToken ?? null);
    }
    const result: JobOutput<"power"> = { state: wanted, changed };
    return { result, write: wanted === "running" ? { sandbox: { state: wanted } } : stoppedWrite(run) };
  },

  /** The task ends with its operation, since the sandbox's next one may begin at once; the record says what stands. */
  async undo(run) {
    const call = run.undoing();
    if (run.operation.step === undefined) return { undone: [] };
    try {
      const { status } = await containerOf(run).lxc.status(call);
      return { undone: [], write: status === "running" ? { sandbox: { state: status } } : stoppedWrite(run) };
    } catch (error) {
      // A node that can't be asked must not keep the operation open.
      if (error instanceof FleetError && error.code !== "lock_lost") return { undone: [] };
      throw error;
    }
  },
};

/** A stopped container has no address: DHCP may give it to another. */
function stoppedWrite({ sandbox, context: { keys } }: Run): Write {
  const also = sandbox.address === undefined ? [] : [["HDEL", keys.addresses, sandbox.address]];
  return { sandbox: { state: "stopped", address: null }, also };
}

async function act(run: Run<"power">, lxc: LxcApi, status: "running" | "stopped"): Promise<void> {
  const { action, graceSec, force } = run.input;
  switch (action) {
    case "start":
      return startContainer(run);
    case "stop":
      return halt(run, lxc, () => lxc.stop({}, run.writing));
    case "shutdown":
      return halt(run, lxc, () => lxc.shutdown({ timeoutSec: graceSec, forceStop: force }, run.writing));
    case "reboot":
      if (status === "stopped" && run.operation.step === undefined) return startContainer(run);
      if (await hasRebooted(run, lxc)) return;
      return runTask(run, {
        step: "reboot",
        kind: "reboot",
        start: () => lxc.reboot({ timeoutSec: graceSec }, run.writing),
      });
    default:
      throw unreachable(action);
  }
}

/** Whether a reboot whose answer was lost has happened all the same: the container is younger than the request. */
async function hasRebooted(run: Run<"power">, lxc: LxcApi): Promise<boolean> {
  const begun = run.operation.step;
  if (begun?.name !== "reboot" || begun.open !== true || begun.upid !== undefined) return false;
  const { status, uptime } = await lxc.status(run.call);
  return status === "running" && uptime !== undefined && uptime * 1_000 < Date.now() - begun.at;
}

/** Stops, once: a container that is stopped already is what was wanted. */
async function halt(run: Run<"power">, lxc: LxcApi, start: () => Promise<Upid>): Promise<void> {
  try {
    await runTask(run, { step: run.input.action, kind: run.input.action, start });
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    if (error.code === "already_stopped") return;
    if (error.code !== "task_lost") throw error;
    if ((await lxc.status(run.call)).status !== "stopped") throw error;
  }
}
