/** The event stream as an async iterator. */
import { FleetError } from "../shared/errors.ts";
import { assertKept, checkCursor, type FleetEvent, type FleetEventType, newestCursor } from "../shared/state/events.ts";
import { openEventReader } from "./event-reader.ts";
import type { Parts } from "./parts.ts";

export interface EventOptions {
  /** Cursor of the last event that was seen; `0` for all that are kept, `$` (when absent) for those from now on. */
  after?: string | undefined;
  /** Ends the iteration, without an error. */
  signal?: AbortSignal | undefined;
  sandbox?: string | undefined;
  /** A fleet of one team sees that team only. */
  team?: string | undefined;
  types?: readonly FleetEventType[] | undefined;
}

/**
 * Events in order, without end; none is missed between the call and the first step, nor through reconnects.
 * Throws `invalid_input` for a cursor that is none or that lies before what is kept.
 */
export function watchEvents(
  parts: Parts,
  options: EventOptions,
  closing: AbortSignal,
): AsyncIterableIterator<FleetEvent> {
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, closing, ...(options.signal ? [options.signal] : [])]);
  const begin = toBegin(parts, options.after ?? "$");
  begin.catch(() => {}); // thrown by the first step
  const events = follow(parts, begin, toFilter(parts, options), signal);
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
async function toBegin(parts: Parts, after: string): Promise<string> {
  checkCursor(after);
  return parts.link.request(async (redis) => {
    if (after === "$") return newestCursor(redis, parts.keys);
    await assertKept(redis, parts.keys, after);
    return after;
  });
}

async function* follow(
  parts: Parts,
  begin: Promise<string>,
  wanted: (event: FleetEvent) => boolean,
  signal: AbortSignal,
): AsyncGenerator<FleetEvent, undefined> {
  let after = await begin;
  if (signal.aborted) return;
  const reader = openEventReader(parts.link, parts.keys);
  const onAbort = () => void reader.close();
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    while (!signal.aborted) {
      const events = await reader.read(after);
      for (const event of events) {
        if (signal.aborted) return;
        if (wanted(event)) yield event;
      }
      after = events.at(-1)?.cursor ?? after;
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    signal.removeEventListener("abort", onAbort);
    await reader.close();
  }
}

function toFilter({ team }: Parts, { sandbox, team: asked, types }: EventOptions): (event: FleetEvent) => boolean {
  if (team !== undefined && asked !== undefined && asked !== team) {
    throw new FleetError("invalid_input", `team: this client is team ${team}'s and sees no other`, {
      facts: { fields: ["team"] },
    });
  }
  const only = team ?? asked;
  return (event) =>
    (only === undefined || event.team === only) &&
    (sandbox === undefined || event.sandbox === sandbox) &&
    (types === undefined || types.includes(event.type));
}
