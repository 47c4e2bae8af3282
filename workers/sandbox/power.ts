/** Starting a container, once: looked at first, recorded, verified. */
import { FleetError } from "../../shared/errors.ts";
import type { Fields } from "../../shared/state/codec.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";
import type { Run } from "../run/run.ts";
import { containerOf } from "./look.ts";
import { runTask } from "./task.ts";

/** Starts the run's container; one that runs already is a success, since a lost reply may have done it. */
export async function startContainer(run: Run, sandbox: Fields<SandboxRecord> = {}): Promise<void> {
  const { lxc } = containerOf(run);
  try {
    await runTask(run, { step: "start", kind: "start", write: { sandbox }, start: () => lxc.start(run.writing) });
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    // A start whose fate is unclear shows on the container itself.
    if (error.code !== "already_running" && error.code !== "task_lost") throw error;
    const status = await lxc.status(run.call);
    if (status.status !== "running")
      throw new FleetError("start_failed", "the container did not start", { cause: error });
  }
}
