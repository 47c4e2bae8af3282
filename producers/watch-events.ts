/** The event stream as an async iterator. */

import { BatchId, OperationId } from "../shared/ids.ts";
import { parseOrRefuse } from "../shared/jobs/problems.ts";
import { openEventReader } from "../shared/state/event-reader.ts";
import {
  assertKept,
  checkCursor,
  compareCursors,
  type FleetEvent,
  type FleetEventType,
  newestCursor,
} from "../shared/state/events.ts";
import { EventFilter, toTeam } from "./event-groups.ts";
import { closedError, toRedisError } from "./link.ts";
import { linkSignals } from "./link-signals.ts";
import type { Parts } from "./parts.ts";

export interface EventOptions {
  /** Cursor of the last event that was seen; `0` for all that are kept, `$` (when absent) for those from now on. */
  after?: string | undefined;
  /** False: ends with the last event that there was at the call, instead of waiting for more. */
  follow?: boolean | undefined;
  /** Ends the iteration, without an error. */
  signal?: AbortSignal | undefined;
  sandbox?: string | undefined;
  operation?: string | undefined;
  /** Of the operations that are its items; what happens to their sandboxes is not in it. */
  batch?: string | undefined;
  /** A fleet of one team sees that team only. */
  team?: string | undefined;
  types?: readonly FleetEventType[] | undefined;
}

/**
 * Events in order, without end; none is missed between the call and the first step, nor through reconnects.
 * Throws `invalid_input` for a cursor or a type that is none, `shutting_down` where the client was closed before, and
 * `cursor_expired` when events after the cursor are gone, or go while a slow consumer is about to come to them:
 * `facts.oldest` is what is kept, `facts.resumeAfter` the cursor to go on from.
 */
export function watchEvents(
  parts: Parts,
  options: EventOptions,
  closing: AbortSignal,
): AsyncIterableIterator<FleetEvent> {
  if (closing.aborted) throw closedError();
  const stop = new AbortController();
  const span = toSpan(parts, options);
  span.catch(() => {}); // thrown by the first step
  const events = follow(parts, span, toFilter(parts, options), [stop.signal, closing, options.signal]);
  return {
    next: () => events.next(),
    async return() {
      // A step that waits for the next event would otherwise hold this up until that event comes.
      stop.abort();
      return events.return(undefined);
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

/** `$` becomes a real cursor at once: between two reads it would mean a later end of the stream. */
async function toSpan(parts: Parts, { after = "$", follow = true }: EventOptions): Promise<Span> {
  checkCursor(after);
  return parts.link.request(async (redis) => {
    const [newest] = await Promise.all([newestCursor(redis, parts.keys), assertKept(redis, parts.keys, after)]);
    return { after: after === "$" ? newest : after, until: follow ? undefined : newest };
  });
}

interface Span {
  after: string;
  /** Cursor of the last event; endless when absent. */
  until: string | undefined;
}

async function* follow(
  parts: Parts,
  span: Promise<Span>,
  wanted: (event: FleetEvent) => boolean,
  ends: readonly (AbortSignal | undefined)[],
): AsyncGenerator<FleetEvent, undefined> {
  using stop = linkSignals(...ends);
  const { signal } = stop;
  const begun = await span.catch((error: unknown) => {
    if (!signal.aborted) throw error;
  });
  if (!begun) return;
  const { until } = begun;
  let { after } = begun;
  const isOver = () => signal.aborted || (until !== undefined && compareCursors(after, until) >= 0);
  if (isOver()) return;
  const reader = openEventReader(parts.link.openBlocking(), parts.keys);
  const onAbort = () => void reader.close();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    while (!isOver()) {
      const { events, cursor } = await reader.read(after);
      if (cursor === after && until !== undefined) return; // its end was removed
      for (const event of events) {
        after = event.cursor;
        if (wanted(event)) yield event;
        if (isOver()) return;
      }
      after = cursor;
    }
  } catch (error) {
    if (!signal.aborted) throw toRedisError(error);
  } finally {
    signal.removeEventListener("abort", onAbort);
    await reader.close();
  }
}

const Filter = EventFilter.extend({ operation: OperationId.optional(), batch: BatchId.optional() });

function toFilter(parts: Parts, options: EventOptions): (event: FleetEvent) => boolean {
  const { sandbox, operation, batch, types } = parseOrRefuse("events", Filter, options);
  const team = toTeam(parts.team, options.team);
  return (event) =>
    (team === undefined || event.team === team) &&
    (sandbox === undefined || event.sandbox === sandbox) &&
    (operation === undefined || event.operation === operation) &&
    (batch === undefined || ("batch" in event.data && event.data.batch === batch)) &&
    (types === undefined || types.includes(event.type));
}
