/** A consumer of a group: takes one event after the other, and says when it is done with it. */
import { setTimeout as pause } from "node:timers/promises";
import { FleetError, retryDelayMs, unreachable } from "../errors.ts";
import { type EventGroupStore, type GroupFilter, groupUnknown } from "./event-groups.ts";
import type { EventReader } from "./event-reader.ts";
import type { FleetEvent } from "./events.ts";

export interface Consumption {
  group: string;
  /** Of this group, in use by one at a time. */
  consumer: string;
  filter: GroupFilter;
  /** After so long without a word a consumer's event goes to another. */
  claimAfterMs: number;
  /** How often an event is given out before it is given up. */
  attempts: number;
  handle(event: FleetEvent, about: { deliveries: number }): unknown;
  /** Hears of events that are gone before anybody was done with them, after which it goes on; without it they end it. */
  onMissed?: ((error: FleetError) => unknown) | undefined;
  /** Hears of an event that is given up, with what its last handling failed with; none when that crashed. */
  onDead?: ((event: FleetEvent, error: unknown) => unknown) | undefined;
}

export interface ConsumerDoors {
  store: EventGroupStore;
  reader: EventReader;
  /** Ends the consumption once the event in hand is done with. */
  signal: AbortSignal;
}

/** At most this long without a look for what others have left. */
const LOOK_MS = 2_000;
/** Between two tries while Redis is away. */
const RETRY_MS = 500;

/** Resolves once the signal aborts. Throws `group_not_found`, `cursor_expired` (see `onMissed`), and what the callbacks throw. */
export async function consumeEvents(doors: ConsumerDoors, work: Consumption): Promise<void> {
  const { store, reader, signal } = doors;
  const { group, consumer, claimAfterMs, attempts, filter } = work;
  let done = "";
  try {
    while (!signal.aborted) {
      const taken = await whileAway(signal, () =>
        store.take(group, { consumer, done, claimAfterMs, attempts, filter }),
      );
      if (taken === undefined) break;
      done = "";
      switch (taken.outcome) {
        case "event":
          if (taken.event === null || (await handle(doors, work, { ...taken, event: taken.event })))
            done = taken.cursor;
          break;
        case "dead":
          if (taken.event !== null) await work.onDead?.(taken.event, undefined);
          break;
        case "lost":
          await tellMissed(work, { after: taken.cursor, what: `event ${taken.cursor}, which somebody had in hand,` });
          done = taken.cursor;
          break;
        case "gap":
          await tellMissed(work, { after: taken.after, oldest: taken.oldest, what: `events after ${taken.after}` });
          await whileAway(signal, () => store.skip(group, taken));
          break;
        case "none":
          await reader
            .wait(taken.after, Math.min(LOOK_MS, claimAfterMs))
            .catch(() => pause(RETRY_MS, undefined, { signal }).catch(() => {}));
          break;
        case "more":
          break;
        case "unknown":
          throw groupUnknown(group);
        default:
          throw unreachable(taken);
      }
    }
  } finally {
    await store.leave(group, consumer, done).catch(() => {}); // then others get what it had after `claimAfterMs`
  }
}

/** Whether the event is done with. One that fails is tried again by the same consumer, so that its events stay in order. */
async function handle(
  { store, signal }: ConsumerDoors,
  { group, consumer, claimAfterMs, attempts, handle, onDead }: Consumption,
  { cursor, event, deliveries }: { cursor: string; event: FleetEvent; deliveries: number },
): Promise<boolean> {
  const beats = setInterval(() => {
    store.keep(group, consumer, cursor).catch(() => {}); // at worst another one gets it, too
  }, claimAfterMs / 3);
  try {
    for (let delivery = deliveries; ; delivery++) {
      try {
        await handle(event, { deliveries: delivery });
        return true;
      } catch (error) {
        const next = await whileAway(signal, () => store.fail(group, consumer, cursor, attempts));
        if (next === "dead") await onDead?.(event, error);
        if (next !== "again") return false;
        await pause(retryDelayMs("transport", delivery, Math.random()) ?? 0, undefined, { signal });
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    return false;
  } finally {
    clearInterval(beats);
  }
}

async function tellMissed(
  { group, onMissed }: Consumption,
  { after, oldest, what }: { after: string; oldest?: string; what: string },
): Promise<void> {
  const error = new FleetError("cursor_expired", `${what} are kept no longer; group ${group} has missed them`, {
    facts: { group, after, ...(oldest === undefined ? {} : { oldest }) },
  });
  if (onMissed === undefined) throw error;
  await onMissed(error);
}

/** Until Redis answers; undefined when it ends before. */
async function whileAway<T>(signal: AbortSignal, ask: () => Promise<T>): Promise<T | undefined> {
  while (!signal.aborted) {
    try {
      return await ask();
    } catch (error) {
      if (signal.aborted) break;
      if (!(error instanceof FleetError) || error.code !== "redis_unavailable") throw error;
      await pause(RETRY_MS, undefined, { signal }).catch(() => {});
    }
  }
  return undefined;
}
