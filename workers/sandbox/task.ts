/** A PVE task as one effectively-once step: recorded before it is asked for, found again after a crash. */
import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { Call } from "../pve/api.ts";
import { Upid } from "../pve/upid.ts";
import type { Run } from "../run/run.ts";

export interface TaskStep {
  /** Name of the step in record and timings. */
  step: string;
  /** Tasks of one kind take alike; the watcher learns how long. */
  kind: string;
  /** Asks PVE. */
  start: () => Promise<Upid>;
  /** Becomes true with the record of the step, before PVE is asked. */
  write?: Write;
}

/**
 * Runs a task to its end. When an earlier run recorded its UPID, waits for that one instead of asking again.
 * Throws the refusal or the task's error.
 */
export async function runTask(run: Run, { step, kind, start, write }: TaskStep): Promise<void> {
  await run.timed(step, async () => {
    const begun = run.operation.step;
    if (begun?.name === step && begun.upid !== undefined) return settle(run, step, Upid.parse(begun.upid), kind);
    await run.begin(step, write);
    run.check();
    const upid = await start();
    // From here on PVE works. Recorded beside the wait: it costs the wait nothing, and a crash before it is found by looking.
    const recorded = run.begin(step, { upid });
    recorded.catch(() => {}); // awaited below; the wait may end first
    await settle(run, step, upid, kind);
    await recorded;
  });
}

async function settle(run: Run, step: string, upid: Upid, kind: string): Promise<void> {
  try {
    await run.context.tasks.wait(upid, { signal: run.signal, kind });
  } catch (error) {
    // It has ended, badly: the next attempt asks anew instead of waiting for it again.
    if (error instanceof FleetError && hasEnded(error.code)) await run.begin(`${step} failed`);
    throw error;
  }
}

/** Codes of a wait that say nothing about the task's end. */
const STILL_OPEN = new Set<FleetErrorCode>([
  "lock_lost",
  "shutting_down",
  "canceled",
  "timeout",
  "node_unreachable",
  "internal",
]);
const hasEnded = (code: FleetErrorCode) => !STILL_OPEN.has(code);

/** After a cancel or a time-out: stops the task that is still recorded as running, and waits until it is gone. */
export async function stopRecordedTask(run: Run, call: Call): Promise<void> {
  const upid = run.operation.step?.upid;
  if (upid === undefined) return;
  const task = Upid.parse(upid);
  try {
    const status = await run.context.pve.tasks.status(task, call);
    if (status.status === "stopped") return;
    await run.context.pve.tasks.stop(task, call);
    await run.context.tasks.wait(task, { signal: call.signal });
  } catch (error) {
    // Its end is what we wanted: an interrupted task ends in an error, a forgotten one has ended.
    if (
      !(error instanceof FleetError) ||
      !["task_failed", "task_lost", "canceled", "shutdown_refused", "start_failed"].includes(error.code)
    )
      throw error;
  }
}
