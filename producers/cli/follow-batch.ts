/** A batch that a command began: shown while it runs, waited for, and canceled when the user leaves. */
import { setTimeout as pause } from "node:timers/promises";
import type { Batch, BatchOptions, BatchView, ItemOutcome } from "../index.ts";
import { createPace, toBatchEnd, toBatchLine } from "./batch-texts.ts";
import { Interrupted } from "./exit-codes.ts";
import type { Session } from "./session.ts";
import { watchFleet } from "./watch-fleet.ts";

/** How long a canceled batch may take to undo what it made, before the CLI leaves it to the workers. */
const CANCEL_WAIT_MS = 10_000;
/** Of looking at its counts: for a line that is redrawn, and for one that is added. */
const LOOK_MS = { watched: 200, plain: 1_000 };
/** Where nobody watches a line is added for each such share. */
const PLAIN_STEPS = 10;

export interface Followed {
  /** Its last known state; undefined where it was never stored. */
  view: BatchView | undefined;
  /** Why it was not followed to its end. */
  error?: unknown;
}

type FollowOptions = Omit<BatchOptions, "signal"> & { wait: boolean; waitTimeout?: number | undefined };

/** Tells how each item ended, in the order of their ends. Throws nothing: what was learnt before an error is worth telling. */
export async function followBatch(
  session: Session,
  begin: (options: BatchOptions) => Promise<Batch>,
  { wait, waitTimeout, id, idempotencyKey, policy, onQuota, onOpen }: FollowOptions,
  tell: (outcome: ItemOutcome) => void,
): Promise<Followed> {
  const { fleet, operations, terminal, interrupt } = session;
  const over = new AbortController();
  let batch: Batch | undefined;
  let shown: Promise<unknown> = Promise.resolve();
  const follow = (one: Batch) => {
    batch = one;
    onOpen?.(one);
    if (!wait) return;
    shown = Promise.all([tellAll(one, tell, over.signal), show(session, one, over.signal)]);
    shown.catch(() => {}); // awaited below
  };
  try {
    const options = { id, idempotencyKey, policy, onQuota, onOpen: follow, signal: interrupt };
    const stored = await operations.begin(() => begin(options));
    if (!wait) return { view: await stored.status() };
    using _ = watchFleet(fleet, terminal);
    const view = await stored.result({ timeoutMs: waitTimeout, signal: interrupt });
    await shown;
    return { view };
  } catch (error) {
    if (!batch) return { view: undefined, error };
    if (!interrupt.aborted) return { view: await batch.status().catch(() => undefined), error };
    const left = await cancel(session, batch, policy === "undo");
    if (left.view?.status === "ended") await shown.catch(() => {});
    return left;
  } finally {
    over.abort();
    await shown.catch(() => {});
  }
}

async function tellAll(batch: Batch, tell: (outcome: ItemOutcome) => void, signal: AbortSignal): Promise<void> {
  for await (const outcome of batch.results({ signal })) tell(outcome);
}

async function cancel({ terminal }: Session, batch: Batch, undo: boolean): Promise<Followed> {
  terminal.err(`fleet: canceling batch ${batch.id}; Ctrl-C again leaves at once\n`);
  const view = await batch
    .cancel({ undo })
    .then(() => batch.result({ timeoutMs: CANCEL_WAIT_MS }))
    .catch(() => undefined);
  const text = view ? toBatchEnd(view) : `batch ${batch.id} is still being undone, see fleet batch get ${batch.id}`;
  return { view, error: new Interrupted(text) };
}

/** Where people watch a line that is redrawn, else lines that are few; for machines nothing. */
async function show({ terminal, json }: Session, batch: Batch, signal: AbortSignal): Promise<void> {
  if (json) return;
  const pace = createPace();
  const { watched } = terminal;
  let step = 0;
  try {
    while (!signal.aborted) {
      const view = await batch.status();
      const line = toBatchLine(view, pace.at(performance.now(), view.counts), watched ? terminal.columns : 0);
      if (watched) terminal.redraw(line);
      const { counts, size = Number.POSITIVE_INFINITY } = view;
      const reached = Math.floor((PLAIN_STEPS * (counts.succeeded + counts.failed + counts.canceled)) / size);
      if (!watched && reached > step && view.status !== "ended") terminal.err(`fleet: ${line}\n`);
      step = Math.max(step, reached);
      if (view.status === "ended") return;
      await pause(watched ? LOOK_MS.watched : LOOK_MS.plain, undefined, { signal });
    }
  } catch {
    // Only the show ends; what is waited for reports its own errors.
  } finally {
    if (watched) terminal.redraw("");
  }
}
