/** A stream in chunks, so that a round trip serves many and memory holds few. */
import { setTimeout as pause } from "node:timers/promises";

export interface ChunkLimits<T> {
  size: number;
  /** A chunk is full when its entries weigh this much. */
  weight: number;
  weightOf(entry: T): number;
  /** What has come goes on when nothing more came for so long: a slow source holds up nobody. */
  lingerMs: number;
}

/** Entries in order, none of them held back longer than `lingerMs`. Throws what the source throws, after what came before. */
export async function* inChunks<T>(source: AsyncIterable<T>, limits: ChunkLimits<T>): AsyncGenerator<T[]> {
  const entries = source[Symbol.asyncIterator]();
  let next: Promise<IteratorResult<T>> | undefined;
  let ended = false;
  try {
    while (!ended) {
      const chunk: T[] = [];
      let weight = 0;
      const patience = new AbortController();
      const late = pause(limits.lingerMs, "late" as const, { signal: patience.signal });
      late.catch(() => {}); // called off
      try {
        while (chunk.length < limits.size && weight < limits.weight) {
          next ??= entries.next();
          next.catch(() => {}); // thrown below, after what came before
          const came: IteratorResult<T> | "late" = await (chunk.length === 0 ? next : Promise.race([next, late]));
          if (came === "late") break;
          next = undefined;
          ended = came.done === true;
          if (came.done === true) break;
          chunk.push(came.value);
          weight += limits.weightOf(came.value);
        }
      } catch (error) {
        ended = true;
        if (chunk.length > 0) yield chunk;
        throw error;
      } finally {
        patience.abort();
      }
      if (chunk.length > 0) yield chunk;
    }
  } finally {
    // Not waited for: a source that never gives its next entry would hold up the end.
    if (!ended) entries.return?.()?.catch(() => {});
  }
}
