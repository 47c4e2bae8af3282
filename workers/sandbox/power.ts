/** Starting a container, once: looked at first, recorded, verified. */
import { FleetError } from "../../shared/errors.ts";
import type { Fields } from "../../shared/state/codec.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { Upid } from "../pve/upid.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";
import { runTask } from "./task.ts";

/** Starts the run's container; one that runs already is a success, since a lost reply may have done it. */
export async function startContainer(run: Run, sandbox: Fields<SandboxRecord> = {}): Promise<void> {
  const { lxc } = containerOf(run);
  const begun = run.operation.step;
  // A start whose reply was lost shows on the container itself.
  const unknown = begun?.name === "start" && begun.open === true && begun.upid === undefined;
  if (unknown && (await lxc.status(run.call)).status === "running") return run.close();
  try {
    await runTask(run, {
      step: "start",
      kind: "start",
      type: "vzstart",
      write: { sandbox },
      start: () => lxc.start(run.writing),
    });
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    // The same for one that ran on meanwhile.
    if (error.code !== "already_running" && error.code !== "task_lost") throw error;
    const status = await lxc.status(run.call);
    if (status.status !== "running")
      throw new FleetError("start_failed", "the container did not start", { cause: error });
  }
}

/** Stops, once: a container that is stopped already is what was wanted. */
export async function haltContainer(run: Run, step: "stop" | "shutdown", start: () => Promise<Upid>): Promise<void> {
  try {
    await runTask(run, { step, kind: step, type: `vz${step}`, start });
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    if (error.code === "already_stopped") return;
    if (error.code !== "task_lost") throw error;
    if ((await containerOf(run).lxc.status(run.call)).status !== "stopped") throw error;
  }
}

/** What a guest gets to write down what it has in memory. */
const GRACE_SEC = 60;

/** Shuts the run's container down, the hard way if it does not obey. */
export async function shutDownContainer(run: Run): Promise<void> {
  const { lxc } = containerOf(run);
  if ((await lxc.status(run.call)).status === "stopped") return;
  await haltContainer(run, "shutdown", () => lxc.shutdown({ timeoutSec: GRACE_SEC, forceStop: true }, run.writing));
}
