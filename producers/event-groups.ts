/** Consumer groups: backends that share the events among their processes. */
import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { z } from "zod";
import { FleetError } from "../shared/errors.ts";
import { GroupName, type TeamId } from "../shared/ids.ts";
import { parseOrRefuse } from "../shared/jobs/problems.ts";
import { consumeEvents } from "../shared/state/consume-events.ts";
import { createEventGroupStore, type DeadEvent, type GroupFacts, groupUnknown } from "../shared/state/event-groups.ts";
import { openEventReader } from "../shared/state/event-reader.ts";
import { EVENT_TYPES, type FleetEvent, type FleetEventType } from "../shared/state/events.ts";
import { linkSignals } from "./link-signals.ts";
import type { Parts } from "./parts.ts";

export interface ConsumeOptions {
  /**
   * Where a group begins that is not there yet: after the event of this cursor, `0` with all that are kept, `$` (when
   * absent) with those from now on. Afterwards it goes on where it was, whoever of it is there.
   */
  after?: string | undefined;
  /** The same for all consumers of a group: what one does not want, none of them gets. A fleet of one team sees that team only. */
  team?: string | undefined;
  sandbox?: string | undefined;
  types?: readonly FleetEventType[] | undefined;
  /** Of the group, and in use once at a time: one that comes back gets at once what it had in hand. Made up when absent. */
  consumer?: string | undefined;
  /** After so many ms without a word (30,000) what a consumer has in hand goes to another. A handler may take longer. */
  claimAfterMs?: number | undefined;
  /** How often an event is given out (5) before it is put aside as dead: see `EventGroups.dead`. */
  attempts?: number | undefined;
  /**
   * Hears (`cursor_expired`) of events that were removed before the group was done with them, after which it goes on with
   * what is left. Without it the consuming ends with that error.
   */
  onMissed?: ((error: FleetError) => unknown) | undefined;
  /** Hears of an event that is put aside, with what the handler threw; with undefined when its consumers died. */
  onDead?: ((event: FleetEvent, error: unknown) => unknown) | undefined;
  /** Ends the consuming, once the event in hand is done with. */
  signal?: AbortSignal | undefined;
}

/** At least once: an event is done with once this has resolved. One that throws is tried again, after 1 s, 2 s, 4 s… */
export type EventHandler = (event: FleetEvent, about: { deliveries: number }) => unknown;

/** In a client of one team, that team's; else all, a team's as `team/name`. */
export interface EventGroups {
  list(): Promise<GroupFacts[]>;
  /** Events that the group gave up, oldest first; the newest 1,000 are kept. Throws `invalid_input`. */
  dead(group: string): Promise<DeadEvent[]>;
  /** Forgets a group with all that it has in hand or put aside. Throws `group_not_found`. */
  remove(group: string): Promise<void>;
}

/** What both ways to events may be asked to leave out. A type that is none would leave out everything. */
export const EventFilter = z.object({
  sandbox: z.string().optional(),
  types: z.array(z.enum(EVENT_TYPES)).optional(),
});

const Options = EventFilter.extend({
  claimAfterMs: z.int().min(100).max(3_600_000).default(30_000),
  attempts: z.int().min(1).max(1_000).default(5),
  consumer: z.string().min(1).max(200).optional(),
});

/**
 * Handles the events of a group, one after the other and in order, until the signal or the client's close ends it.
 * Throws `invalid_input`, `cursor_expired`, `group_not_found` when the group was removed, and what the callbacks throw.
 */
export async function consume(
  parts: Parts,
  group: string,
  handle: EventHandler,
  options: ConsumeOptions,
  closing: AbortSignal,
): Promise<void> {
  const name = toFullName(group, parts.team);
  const { claimAfterMs, attempts, consumer, sandbox, types } = parseOrRefuse("consume", Options, options);
  const team = toTeam(parts.team, options.team);
  using linked = linkSignals(closing, options.signal);
  const { signal: stop } = linked;
  const store = createEventGroupStore(parts.link.request, parts.keys);
  await store.open(name, options.after ?? "$");
  const reader = openEventReader(parts.link.openBlocking(), parts.keys);
  const onStop = () => void reader.close();
  stop.addEventListener("abort", onStop, { once: true });
  try {
    await consumeEvents(
      { store, reader, signal: stop },
      {
        group: name,
        consumer: consumer ?? `${hostname()}-${randomBytes(6).toString("hex")}`,
        filter: { team, sandbox, types },
        claimAfterMs,
        attempts,
        handle,
        onMissed: options.onMissed,
        onDead: options.onDead,
      },
    );
  } finally {
    stop.removeEventListener("abort", onStop);
    await reader.close();
  }
}

export function createEventGroups(parts: Parts): EventGroups {
  const { team, link, keys } = parts;
  const store = createEventGroupStore(link.request, keys);
  const own = team === undefined ? "" : `${team}/`;
  return {
    async list() {
      const groups = await store.list();
      // Names that begin otherwise are the fleet's own.
      const shown = groups.filter(({ name }) => /^[a-zA-Z0-9]/.test(name) && name.startsWith(own));
      return shown.map((group) => ({ ...group, name: group.name.slice(own.length) }));
    },
    dead: async (group) => store.dead(toFullName(group, team)),
    async remove(group) {
      if (!(await store.remove(toFullName(group, team)))) throw groupUnknown(group);
    },
  };
}

/** A team's groups are its own, whatever they are called. */
function toFullName(group: string, team: TeamId | undefined): string {
  const parts = group.split("/");
  if (parts.length > (team === undefined ? 2 : 1) || !parts.every((part) => GroupName.safeParse(part).success)) {
    throw new FleetError(
      "invalid_input",
      "group: must be 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first",
      {
        facts: { fields: ["group"] },
      },
    );
  }
  return team === undefined ? group : `${team}/${group}`;
}

/** The team whose events are seen. Throws `invalid_input` for another than the client's. */
export function toTeam(own: TeamId | undefined, asked: string | undefined): string | undefined {
  if (own !== undefined && asked !== undefined && asked !== own) {
    throw new FleetError("invalid_input", `team: this client is team ${own}'s and sees no other`, {
      facts: { fields: ["team"] },
    });
  }
  return own ?? asked;
}
