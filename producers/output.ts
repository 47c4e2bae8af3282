/** What a command prints, while it runs and afterwards, as an async iterator. */
import { setTimeout as pause } from "node:timers/promises";
import { createBell } from "../shared/bell.ts";
import { defer } from "../shared/deferred.ts";
import { FleetError } from "../shared/errors.ts";
import { jobs } from "../shared/jobs/index.ts";
import { readOutput, type StoredEntry, type StreamName, toOutputMark } from "../shared/state/output.ts";
import type { EndedOperation } from "../shared/state/records.ts";
import type { EndWatch, Wait } from "./end-watch.ts";
import { linkSignals } from "./link-signals.ts";
import type { Parts } from "./parts.ts";

/** What was printed, or what happened to it. */
export type OutputChunk =
  | { stream: StreamName; text: string }
  /** So many bytes can't be had any more: the newest MiB is kept. */
  | { stream: "gap"; bytes: number }
  /** An idempotent command is run again, as its worker died; what follows is of the new run. */
  | { stream: "restarted" };

/** What is asked for late is found at once, without a connection for it. */
const FIRST_LOOK_MS = 5;
/** Makes up for a message that was lost. */
const REREAD_MS = 2_000;
const REDIS_AWAY_MS = 500;

/** See `Watchable.output`. */
export function watchOutput(parts: Parts, ends: EndWatch, id: string, wait: Wait): AsyncIterableIterator<OutputChunk> {
  const stop = new AbortController();
  const end = async () => {
    using either = linkSignals(stop.signal, wait.signal);
    return await ends.wait(id, { ...wait, signal: either.signal });
  };
  const chunks = follow(parts, end, id, stop);
  return {
    next: () => chunks.next(),
    async return() {
      // A step that waits for the next piece would otherwise hold this up until that piece comes.
      stop.abort();
      return chunks.return(undefined);
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

async function* follow(
  { link, keys, channels }: Parts,
  wait: () => Promise<EndedOperation>,
  id: string,
  stop: AbortController,
): AsyncGenerator<OutputChunk, undefined> {
  const bell = createBell();
  const reader = createReader();
  let ended: EndedOperation | undefined;
  let listening: Disposable | undefined;
  let givenUp: { by: unknown } | undefined;
  let leave: (by: unknown) => void = () => {};
  const onEnd = (operation: EndedOperation) => {
    ended = operation;
    bell.ring();
  };
  wait().then(onEnd, (by: unknown) => {
    givenUp = { by };
    leave(by);
  });
  /** Raced with a promise of its own each time: one for all would keep something of each until the end. */
  const orGivenUp = <T>(work: Promise<T>): Promise<T> => {
    const { promise, reject } = defer<never>();
    leave = reject;
    if (givenUp) reject(givenUp.by);
    return Promise.race([promise, work]);
  };
  try {
    while (true) {
      const last = ended; // known before the read, so that nothing comes after it
      const entries = await orGivenUp(read({ link, keys }, id, reader.cursor));
      for (const entry of entries ?? []) yield* reader.take(entry);
      if (entries === null) await orGivenUp(pause(REDIS_AWAY_MS));
      else if (entries.length === 0) {
        if (last) return yield* reader.finish(last);
        await orGivenUp(bell.wait(listening ? REREAD_MS : FIRST_LOOK_MS));
      }
      // Who reads all the time is one of those who are waited for as well.
      if (!ended) listening ??= channels.listen(keys.output(id), bell.ring);
    }
  } catch (error) {
    if (!stop.signal.aborted) throw error;
  } finally {
    listening?.[Symbol.dispose]();
    bell.ring(); // a wait that was given up would keep the process for its time
    stop.abort();
  }
}

/** Null while Redis is away. */
async function read(
  { link, keys }: Pick<Parts, "link" | "keys">,
  id: string,
  cursor: string,
): Promise<StoredEntry[] | null> {
  try {
    return await link.request((redis) => readOutput(redis, keys, id, cursor));
  } catch (error) {
    if (error instanceof FleetError && error.code === "redis_unavailable") return null;
    throw error;
  }
}

/** Turns entries into chunks, and finds out from their numbers what is missing. */
function createReader() {
  let cursor = "0";
  let run: number | undefined;
  let seen = 0;
  function* begin(of: number): Generator<OutputChunk, undefined> {
    if (run === of) return;
    if (run !== undefined) yield { stream: "restarted" };
    run = of;
    seen = 0;
  }
  function* skipTo(at: number): Generator<OutputChunk, undefined> {
    if (at > seen) yield { stream: "gap", bytes: at - seen };
    seen = Math.max(seen, at);
  }
  return {
    get cursor() {
      return cursor;
    },
    *take(entry: StoredEntry): Generator<OutputChunk, undefined> {
      cursor = entry.cursor;
      yield* begin(entry.run);
      const bytes = entry.pieces.reduce((sum, { text }) => sum + Buffer.byteLength(text), 0);
      yield* skipTo(entry.end - bytes);
      yield* entry.pieces;
      seen = entry.end;
    },
    /** What only the record tells. */
    *finish({ status, result, output }: EndedOperation): Generator<OutputChunk, undefined> {
      if (output !== undefined) {
        const mark = toOutputMark(output);
        yield* begin(mark.run);
        yield* skipTo(mark.bytes);
      } else if (status === "succeeded") {
        const { stdout = "", stderr = "" } = jobs.exec.output.safeParse(result).data ?? {}; // a shell's has none
        if (stdout !== "") yield { stream: "stdout", text: stdout };
        if (stderr !== "") yield { stream: "stderr", text: stderr };
      }
    },
  };
}
