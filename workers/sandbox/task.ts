/** A PVE task as one effectively-once step: recorded before it is asked for, found again after a crash. */
import { FleetError, type FleetErrorCode } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { Write } from "../../shared/state/operations.ts";
import type { Call } from "../pve/api.ts";
import { parseUpid, Upid } from "../pve/upid.ts";
import type { Run } from "../run/run.ts";

export interface TaskStep {
  /** Name of the step in record and timings. */
  step: string;
  /** Tasks of one kind take alike; the watcher learns how long. */
  kind: string;
  /** Asks PVE, with `run.writing`. */
  start: () => Promise<Upid>;
  /** Becomes true with the record of the step, before PVE is asked. */
  write?: Write;
  /** What can be done while the task runs. */
  meanwhile?: () => Promise<void>;
  /** Where the request goes, when not to the sandbox's node; and to whose container, when not to its own. */
  node?: NodeName;
  vmid?: Vmid;
  /**
   * PVE's type of the task, where it bears the container's VMID: after a lost reply one that runs is waited for instead of
   * asking again.
   */
  type?: string;
}

/**
 * Runs a task to its end. When an earlier run recorded its UPID, waits for that one instead of asking again.
 * Throws the refusal or the task's error. An open step without UPID in the record means: asked, outcome unknown.
 */
export async function runTask(run: Run, task: TaskStep): Promise<void> {
  const { step, kind, write, meanwhile, node } = task;
  const at = node === undefined ? {} : { node };
  await run.timed(step, async () => {
    const begun = run.operation.step;
    if (begun?.name === step && begun.open === true && begun.upid !== undefined) {
      await settle(run, step, Upid.parse(begun.upid));
      return run.close();
    }
    // A refusal of this request says nothing of an earlier one whose fate is unknown: that may still be executed.
    const wasUnknown = begun?.name === step && begun.open === true;
    await run.begin(step, { ...write, ...at, open: true });
    const found = wasUnknown ? await findRunning(run, task) : null;
    const upid = await (found === null ? task.start() : Promise.resolve(found)).catch(async (error: unknown) => {
      if (wasRefused(error) && !wasUnknown) await run.begin(step);
      throw error;
    });
    // From here on PVE works. Recorded beside the wait: it costs the wait nothing, and a crash before it is found by looking.
    const recorded = run.begin(step, { upid, ...at, open: true });
    recorded.catch(() => {}); // awaited below; the wait may end first
    const aside = meanwhile?.();
    aside?.catch(() => {}); // as above
    try {
      await settle(run, step, upid, { kind, recorded });
    } finally {
      await recorded;
    }
    await aside;
    run.close();
  });
}

/** The task that a request whose reply was lost has begun, while it runs. */
async function findRunning(
  run: Run,
  { type, node = run.sandbox.node, vmid = run.sandbox.vmid }: TaskStep,
): Promise<Upid | null> {
  if (type === undefined || node === undefined || vmid === undefined) return null;
  const tasks = await run.context.pve.tasks.list(node, { source: "active", vmid }, run.call);
  const found = tasks.find((one) => one.type === type && one.endtime === undefined);
  return found === undefined ? null : Upid.parse(found.upid);
}

const UNKNOWN: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  "outcome_unknown",
  "pve_bad_reply",
  "timeout",
  "lock_lost",
  "internal",
]);

/** Whether PVE certainly did not take a request: it refused, or the request was never sent. */
export const wasRefused = (error: unknown): boolean => error instanceof FleetError && !UNKNOWN.has(error.code);

/** What a wait for a task throws while nothing is known of the task's end. */
const WAITING: ReadonlySet<FleetErrorCode> = new Set<FleetErrorCode>([
  ...UNKNOWN,
  "canceled",
  "shutting_down",
  "node_unreachable",
  "unauthorized",
  "forbidden",
  "tls_untrusted",
]);

/** Whether an error of a wait is the task's own end, and so names the task; one that PVE does not know any more has ended, too. */
export const hasEnded = (error: unknown): boolean =>
  error instanceof FleetError && (error.facts["task"] !== undefined || !WAITING.has(error.code));

/** Name of a step whose task has failed: what it made may be left. */
export const failedStep = (step: string): string => `${step} failed`;

/** `kind` only for a task just started: the watcher learns from it, and asks for a found one at once. */
async function settle(
  run: Run,
  step: string,
  upid: Upid,
  fresh?: { kind: string; recorded: Promise<void> },
): Promise<void> {
  try {
    await run.context.tasks.wait(upid, { signal: run.signal, ...(fresh ? { kind: fresh.kind } : {}) });
  } catch (error) {
    await fresh?.recorded;
    // It has ended, badly: the next attempt asks anew instead of waiting for it again.
    if (hasEnded(error)) await run.begin(failedStep(step));
    throw error;
  }
}

/** Interrupted, these may leave the container locked, which takes a human or SSH to clear; they take a fraction of a second. */
const BETTER_FINISHED: ReadonlySet<string> = new Set(["vzsnapshot", "vzdelsnapshot", "vzrollback"]);
const FINISH_PATIENCE_MS = 15_000;

/** Whether it is left to end by itself, and has. */
async function finishes({ context }: Run, task: Upid, call: Call): Promise<boolean> {
  if (!BETTER_FINISHED.has(parseUpid(task).type)) return false;
  const patience = AbortSignal.timeout(FINISH_PATIENCE_MS);
  try {
    await context.tasks.wait(task, { signal: AbortSignal.any([call.signal, patience]) });
  } catch (error) {
    if (call.signal.aborted || !patience.aborted) throw error;
    return false;
  }
  return true;
}

/** After a cancel or a time-out: stops the task that is still recorded as running, and waits until it is gone. */
export async function stopRecordedTask(run: Run, call: Call): Promise<void> {
  const upid = run.operation.step?.upid;
  if (upid === undefined) return;
  const task = Upid.parse(upid);
  try {
    const status = await run.context.pve.tasks.status(task, call);
    if (status.status === "stopped" || (await finishes(run, task, call))) return;
    await run.context.pve.tasks.stop(task, call);
    await run.context.tasks.wait(task, { signal: call.signal });
  } catch (error) {
    // Its end is what we wanted: an interrupted task ends in an error, a forgotten one has ended.
    if (!hasEnded(error)) throw error;
  }
}
