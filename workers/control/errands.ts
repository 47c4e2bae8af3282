/** Does what operators ask for, one after the other. After a crash it is begun again: each errand may be repeated. */
import { setTimeout as pause } from "node:timers/promises";
import { FleetError, toErrorRecord, toFleetError, unreachable } from "../../shared/errors.ts";
import { createErrands, type Errand, type Finding } from "../../shared/state/errands.ts";
import type { WorkerContext } from "../context.ts";
import { withLock } from "./lock.ts";
import { forget, reconcile } from "./round.ts";

/** Begun so often without an end, it ends workers. */
const RUNS_ALLOWED = 5;
/** The rounds of the clockwork go first; they are asked this often whether they are done. */
const LOOK_MS = 200;
const PROGRESS_MS = 500;

export async function runErrands(context: WorkerContext, signal: AbortSignal): Promise<void> {
  const errands = createErrands(context.redis, context.keys);
  const next = await errands.next();
  if (next === null) return;
  const errand: Errand = { ...next, status: "running", runs: next.runs + 1, done: 0 };
  await errands.save(errand);
  const progress = setInterval(() => {
    errands.save(errand).catch(() => {}); // the end says all
  }, PROGRESS_MS);
  try {
    if (errand.runs > RUNS_ALLOWED) throw new FleetError("internal", "given up after workers died of it");
    const findings = await run(context, errand, signal);
    clearInterval(progress);
    await errands.end(errand, { findings });
  } catch (thrown) {
    clearInterval(progress);
    signal.throwIfAborted(); // another worker does it
    const error = toFleetError(thrown);
    context.log.warn(
      { errand: errand.input.kind, code: error.code, facts: error.facts },
      "could not do what was asked for",
    );
    await errands.end(errand, { error: toErrorRecord(error) });
  } finally {
    clearInterval(progress);
  }
}

async function run(context: WorkerContext, errand: Errand, signal: AbortSignal): Promise<Finding[]> {
  const { input } = errand;
  const onProgress = () => {
    errand.done += 1;
  };
  switch (input.kind) {
    case "reconcile":
      return alone(context, () => reconcile(context, { ...input, signal, onProgress }), signal);
    case "forget":
      return alone(context, () => forget(context, input.node, { signal }), signal);
    default:
      throw unreachable(input);
  }
}

/** Under the lock of the clockwork's own rounds. */
async function alone<T>({ redis, keys }: WorkerContext, work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  while (true) {
    const done: T[] = [];
    const key = `${keys.prefix}:control-lock:reconcile`;
    await withLock(redis, key, async () => {
      done.push(await work());
    });
    const [result] = done;
    if (done.length > 0) return result as T; // just pushed
    await pause(LOOK_MS, undefined, { signal });
  }
}
