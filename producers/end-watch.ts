/**
 * Waits for ends of operations: one connection for any number of waiters, open while somebody waits and a while longer.
 * The record is the truth; messages say when to look, or to who asked for the operation what stands there now; a slow
 * re-read makes up for those that are lost.
 */
import { z } from "zod";
import { type Deferred, defer } from "../shared/deferred.ts";
import { FleetError } from "../shared/errors.ts";
import { newListenerId } from "../shared/ids.ts";
import { decodeHash } from "../shared/state/codec.ts";
import { ENDED_FIELDS, EndedOperation, isEnded } from "../shared/state/records.ts";
import { closedError } from "./link.ts";
import { expectMany } from "./link-signals.ts";
import type { Parts } from "./parts.ts";

/** As its end tells it to who asked for the operation: the fields of the record, as they are stored. */
const Told = z.array(z.union([z.string(), z.literal(false)]));

/** Who waits for one after the other would else open a connection for each, which costs more than a command. */
const LINGER_MS = 6_000;
const REREAD_MS = 2_000;
const REREAD_BATCH = 200;
/** As long as an ended operation is kept, where nobody says otherwise. */
const DEFAULT_WAIT_MS = 86_400_000;
/** Node takes what is longer for 1 ms. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export interface Wait {
  /** Longest wait in ms: a day when absent, `Infinity` for no limit. The operation goes on after it. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

type Waiter = Deferred<EndedOperation>;
type Values = readonly (string | null | false)[];

/** Wakes who follows a batch. Begun before one looks: what comes between the look and the wait is not missed. */
export interface BatchWatch extends Disposable {
  /** Resolves when something may have changed since the last one, and after `withinMs`. Throws the signal's reason. */
  next(withinMs: number, signal: AbortSignal): Promise<void>;
}

/** Who asks for an operation and will hear of its end. */
export interface Listener {
  readonly id: string;
  /** It is about to be asked for. */
  expect(operation: string): void;
  /** It came to nothing. */
  dismiss(operation: string): void;
}

export class EndWatch {
  readonly #parts: Parts;
  readonly #waiting = new Map<string, Set<Waiter>>();
  /** Asked for while somebody listened, and no end heard since: they need no look to know that they have not ended. */
  readonly #expected = new Set<string>();
  readonly #watchers = new Map<string, Set<() => void>>();
  readonly #closing = new AbortController();
  readonly #id = newListenerId();
  #listening: Disposable | undefined;

  constructor(parts: Parts) {
    this.#parts = parts;
  }

  /** Resolves with the ended record. Throws `operation_unknown`, `timeout`, `shutting_down`, `invalid_input`, or the signal's reason. */
  async wait(id: string, { timeoutMs = DEFAULT_WAIT_MS, signal }: Wait): Promise<EndedOperation> {
    if (this.#closing.signal.aborted) throw closedError();
    signal?.throwIfAborted();
    const timerMs = toTimerMs(timeoutMs);
    const waiter = this.#register(id);
    const onAbort = () => waiter.reject(signal?.reason);
    if (signal) expectMany(signal);
    signal?.addEventListener("abort", onAbort, { once: true });
    const giveUp = () => waiter.reject(toTimeout(id, timeoutMs));
    const timer = timerMs === undefined ? undefined : setTimeout(giveUp, timerMs);
    try {
      this.#begin(id).catch(waiter.reject);
      return await waiter.promise;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      this.#unregister(id, waiter);
    }
  }

  /** Whom the end of an operation may tell what it was, where somebody listens already. */
  get listener(): Listener | undefined {
    if (!this.#listening) return undefined;
    const expected = this.#expected;
    return {
      id: this.#id,
      expect: (operation) => void expected.add(operation),
      dismiss: (operation) => void expected.delete(operation),
    };
  }

  watchBatch(id: string): BatchWatch {
    if (this.#closing.signal.aborted) throw closedError();
    const closing = this.#closing.signal;
    let changed = false;
    let wake: (() => void) | undefined;
    const onChange = () => {
      changed = true;
      wake?.();
    };
    const watchers = this.#watchers.get(id) ?? new Set();
    this.#watchers.set(id, watchers.add(onChange));
    this.#listen();
    return {
      async next(withinMs, signal) {
        if (!changed && !closing.aborted && !signal.aborted) {
          const woken = defer<void>();
          wake = () => woken.resolve();
          const timer = setTimeout(wake, withinMs);
          signal.addEventListener("abort", wake, { once: true });
          await woken.promise;
          clearTimeout(timer);
          signal.removeEventListener("abort", wake);
        }
        changed = false;
        if (closing.aborted) throw closedError();
        signal.throwIfAborted();
      },
      [Symbol.dispose]: () => {
        watchers.delete(onChange);
        if (watchers.size === 0) this.#watchers.delete(id);
      },
    };
  }

  close(): void {
    this.#closing.abort();
    for (const id of this.#watchers.keys()) this.#wakeWatchers(id);
    for (const waiter of [...this.#waiting.values()].flatMap((waiters) => [...waiters])) waiter.reject(closedError());
    this.#leave();
  }

  #register(id: string): Waiter {
    const waiter: Waiter = defer();
    const waiters = this.#waiting.get(id) ?? new Set();
    this.#waiting.set(id, waiters.add(waiter));
    return waiter;
  }

  #unregister(id: string, waiter: Waiter): void {
    const waiters = this.#waiting.get(id);
    waiters?.delete(waiter);
    if (waiters?.size === 0) this.#waiting.delete(id);
  }

  /** A late caller is answered by the first read; only who has to wait listens. */
  async #begin(id: string): Promise<void> {
    if (this.#expected.has(id)) return;
    // A first read that fails is made up for by those that follow.
    await this.#look([id]).catch(() => {});
    if (this.#waiting.has(id) && !this.#closing.signal.aborted) this.#listen();
  }

  /** Until nobody has waited for a while. */
  #listen(): void {
    if (this.#listening) return;
    const { channels, keys } = this.#parts;
    const heard = [
      channels.listen(keys.wake, (message) => this.#hear(message)),
      channels.listen(keys.ends, (message) => this.#hear(message)),
      channels.listen(keys.told(this.#id), (message) => this.#hearEnd(message)),
    ];
    let idleMs = 0;
    const timer = setInterval(() => {
      idleMs = this.#waiting.size + this.#watchers.size > 0 ? 0 : idleMs + REREAD_MS;
      if (idleMs >= LINGER_MS) this.#leave();
      // While Redis is away each look would only lengthen ioredis' queue; we are called when it is back.
      else if (this.#parts.link.redis().status === "ready") this.#lookAtAll();
    }, REREAD_MS);
    this.#listening = {
      [Symbol.dispose]() {
        clearInterval(timer);
        for (const one of heard) one[Symbol.dispose]();
      },
    };
  }

  #leave(): void {
    this.#expected.clear();
    this.#listening?.[Symbol.dispose]();
    this.#listening = undefined;
  }

  /** No message: some may have been missed. */
  #hear(message: string | undefined): void {
    if (message === undefined) {
      this.#expected.clear();
      for (const id of this.#watchers.keys()) this.#wakeWatchers(id);
      this.#lookAtAll();
      return;
    }
    const [word, id = "", batch] = message.split(" ");
    if (word === "ended") this.#expected.delete(id);
    if (word === "ended" && this.#waiting.has(id)) this.#look([id]).catch(() => {}); // the next look comes
    if (word === "ended" && batch !== undefined) this.#wakeWatchers(batch);
    if (word === "batch") this.#wakeWatchers(id);
  }

  /** Saves the look. What is no longer waited for, or was not yet, is found by one. */
  #hearEnd(message: string | undefined): void {
    if (message === undefined) return; // `wake` has us look
    const values = readTold(message);
    const [id] = values;
    if (typeof id !== "string") {
      this.#lookAtAll(); // of a newer version
      return;
    }
    this.#expected.delete(id);
    if (this.#waiting.has(id)) this.#settle(id, values);
  }

  #wakeWatchers(id: string): void {
    for (const wake of this.#watchers.get(id) ?? []) wake();
  }

  #lookAtAll(): void {
    this.#look([...this.#waiting.keys()]).catch(() => {}); // the next one comes
  }

  /** Reads records and settles those that have ended or are gone. */
  async #look(ids: readonly string[]): Promise<void> {
    for (let at = 0; at < ids.length; at += REREAD_BATCH) {
      const some = ids.slice(at, at + REREAD_BATCH);
      await Promise.all(some.map(async (id) => this.#settle(id, await loadFields(this.#parts, id))));
    }
  }

  #settle(id: string, values: Values): void {
    const settle = (how: (waiter: Waiter) => void) => {
      const waiters = this.#waiting.get(id) ?? [];
      this.#waiting.delete(id); // the same end may come in two messages
      for (const waiter of waiters) how(waiter);
    };
    try {
      const record = decodeEnded(id, values);
      if (record === null || !this.#isMine(record)) {
        settle((waiter) => waiter.reject(toUnknown(id)));
      } else if (isEnded(record.status)) {
        settle((waiter) => waiter.resolve(record));
      }
    } catch (error) {
      settle((waiter) => waiter.reject(error));
    }
  }

  #isMine(record: EndedOperation): boolean {
    return this.#parts.team === undefined || record.team === this.#parts.team;
  }
}

/** Nothing of what can't be read: what a listener throws ends the process. */
function readTold(message: string): Values {
  try {
    return Told.parse(JSON.parse(message));
  } catch {
    return [];
  }
}

/** For a timer of that wait; undefined: it has no limit. Throws `invalid_input`. */
export function toTimerMs(timeoutMs: number): number | undefined {
  if (!(timeoutMs >= 0)) {
    throw new FleetError("invalid_input", "timeoutMs: must be 0 or more", { facts: { fields: ["timeoutMs"] } });
  }
  return Number.isFinite(timeoutMs) ? Math.min(Math.ceil(timeoutMs), LONGEST_TIMER_MS) : undefined;
}

/** Of these operations the records that are still there and in reach. */
export async function loadEnded(parts: Parts, ids: readonly string[]): Promise<EndedOperation[]> {
  return (await Promise.all(ids.map(async (id) => decodeEnded(id, await loadFields(parts, id)) ?? []))).flat();
}

/** No pipeline for many: commands of one turn are written together all the same, and ioredis needs long to make one. */
const loadFields = ({ link, keys }: Parts, id: string): Promise<Values> =>
  link.request((redis) => redis.hmget(keys.operation(id), ...ENDED_FIELDS));

function decodeEnded(id: string, values: Values): EndedOperation | null {
  const hash: Record<string, string> = {};
  for (const [index, field] of ENDED_FIELDS.entries()) {
    const value = values[index];
    if (typeof value === "string") hash[field] = value;
  }
  return Object.keys(hash).length === 0 ? null : decodeHash(EndedOperation, hash, `operation ${id}`);
}

export const toUnknown = (id: string): FleetError =>
  new FleetError("operation_unknown", `there is no operation ${id} (any more)`, { facts: { operation: id } });

const toTimeout = (id: string, timeoutMs: number): FleetError =>
  new FleetError(
    "timeout",
    `operation ${id} has not ended within ${timeoutMs} ms; it goes on, ask again or cancel it`,
    {
      facts: { operation: id, goesOn: true },
    },
  );
