import { FleetError, unreachable } from "../../shared/errors.ts";
import type { JobOutput } from "../../shared/jobs/index.ts";
import { slotOf } from "../../shared/state/slots.ts";
import type { LxcApi } from "../pve/api.ts";
import type { Upid } from "../pve/upid.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "../sandbox/look.ts";
import { startContainer } from "../sandbox/power.ts";
import { awaitReady } from "../sandbox/ready.ts";
import { runTask, stopRecordedTask } from "../sandbox/task.ts";
import type { Handler } from "./handler.ts";

export const power: Handler<"power"> = {
  async run(run) {
    const { place, lxc } = containerOf(run);
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
    return { result, write: { sandbox: { state: wanted } } };
  },

  /** The task ends with its operation, since the sandbox's next one may begin at once; the record says what stands. */
  async undo(run) {
    const call = run.undoing();
    if (run.operation.step === undefined) return { undone: [] };
    await stopRecordedTask(run, call);
    try {
      const { status } = await containerOf(run).lxc.status(call);
      return { undone: [], write: { sandbox: { state: status } } };
    } catch (error) {
      // A node that can't be asked must not keep the operation open.
      if (error instanceof FleetError && error.code !== "lock_lost") return { undone: [] };
      throw error;
    }
  },
};

async function act(run: Run<"power">, lxc: LxcApi, status: "running" | "stopped"): Promise<void> {
  const { action, graceSec, force } = run.input;
  switch (action) {
    case "start":
      return startContainer(run);
    case "stop":
      return halt(run, lxc, () => lxc.stop({}, run.call));
    case "shutdown":
      return halt(run, lxc, () => lxc.shutdown({ timeoutSec: graceSec, forceStop: force }, run.call));
    case "reboot":
      if (status === "stopped" && run.operation.step === undefined) return startContainer(run);
      return runTask(run, {
        step: "reboot",
        kind: "reboot",
        start: () => lxc.reboot({ timeoutSec: graceSec }, run.call),
      });
    default:
      throw unreachable(action);
  }
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
