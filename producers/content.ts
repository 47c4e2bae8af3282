/** What a download has fetched, for its producer. */
import type { OperationId } from "../shared/ids.ts";
import type { Wait } from "./end-watch.ts";
import type { Parts } from "./parts.ts";

/** Its bytes in order, checked on the way: an altered or shortened content ends in an error, not in an end. */
export interface Content extends AsyncIterable<Buffer> {
  /** All of it: at most 64 MiB. */
  buffer(): Promise<Buffer>;
}

/** `ended` resolves when the download has succeeded; nothing is read before it is asked for. */
export function createContent(
  parts: Parts,
  id: OperationId,
  { ended, signal }: { ended: () => Promise<unknown>; signal: Wait["signal"] },
): Content {
  const ask = parts.link.request;
  async function* read(): AsyncGenerator<Buffer, void> {
    await ended();
    for await (const piece of parts.contents.read(id, ask)) {
      signal?.throwIfAborted();
      yield piece;
    }
    await parts.contents.fetched(id, ask).catch(() => {}); // then it goes with its operation's record
  }
  return {
    [Symbol.asyncIterator]: read,
    async buffer() {
      const pieces: Buffer[] = [];
      for await (const piece of read()) pieces.push(piece);
      return Buffer.concat(pieces);
    },
  };
}
