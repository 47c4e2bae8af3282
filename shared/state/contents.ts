/**
 * What uploads bring and downloads have fetched: in pieces, each sealed with AES-256-GCM, in one hash an operation. An
 * upload's is spooled before the operation is accepted and goes with its end; a download's is kept as long as its record.
 * All together have a bound in bytes (see ADD_CONTENT), since Redis holds them in memory.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { FleetError } from "../errors.ts";
import { TRANSFER_LIMIT } from "../jobs/fields.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript } from "../redis/script.ts";
import { ADD_CONTENT, DROP_CONTENT } from "./content-scripts.ts";
import type { Keys } from "./keys.ts";
import { openBytes, sealBytes, sealingKey } from "./secrets.ts";

/** Of a piece before it is sealed. */
export const PIECE_BYTES = 262_144;
/** Of all contents together. */
const CONTENTS_LIMIT = 536_870_912;
/** What is not added to for so long, and not accepted, goes by itself. */
const SPOOL_SEC = 600;
/** Once fetched to its end, for others that are at it, and for a second look. */
const FETCHED_SEC = 300;
/** Field of the last piece: what the whole must be. */
const END = "end";

const Digest = z.object({ bytes: z.number().int(), sha256: z.string() });
export type Digest = z.output<typeof Digest>;

/** One request to Redis, with the deadline of whoever asks. */
export type Ask = <T>(request: (redis: RedisConnection) => Promise<T>) => Promise<T>;

export interface ContentWriter {
  /** Resolves when it may be called again, and the bytes be changed. */
  add(bytes: Uint8Array): Promise<void>;
  /** Only now there is a content. */
  end(): Promise<Digest>;
}

export interface ContentStore {
  /**
   * Begins a content anew. `fence`: of the run that writes it, none before the operation is accepted. Throws
   * `not_configured`; its writer `content_too_large`, `transfers_full`, `lock_lost`, `content_gone`.
   */
  write(owner: string, by: { ask: Ask; fence?: string }): ContentWriter;
  /** What the whole is. Throws `content_gone`. */
  digest(owner: string, ask: Ask): Promise<Digest>;
  /** The pieces in order. Throws `content_gone`; `content_damaged` at the latest at its end when it is not what was put. */
  read(owner: string, ask: Ask): AsyncGenerator<Buffer, void>;
  /** Nobody needs it much longer. */
  fetched(owner: string, ask: Ask): Promise<void>;
  remove(owner: string, ask: Ask): Promise<void>;
}

export function createContentStore(
  keys: Keys,
  keyring: readonly Buffer[] | undefined,
  { limit = CONTENTS_LIMIT, now = Date.now }: { limit?: number; now?: () => number } = {},
): ContentStore {
  /** A piece can stand neither in another's place nor in another operation's content. */
  const nameOf = (owner: string, field: string) => `${owner}/${field}`;

  const load = async (owner: string, field: string, ask: Ask): Promise<Buffer> => {
    const sealed = await ask((redis) => redis.hgetBuffer(keys.content(owner), field));
    if (sealed === null) throw contentGone(owner);
    sealingKey(keyring); // none at all is another problem than a wrong one
    try {
      return openBytes(keyring ?? [], nameOf(owner, field), sealed);
    } catch (error) {
      throw error instanceof FleetError ? error : damaged(owner);
    }
  };
  const digest = async (owner: string, ask: Ask): Promise<Digest> =>
    Digest.parse(JSON.parse((await load(owner, END, ask)).toString("utf8")));

  return {
    digest,

    write(owner, { ask, fence = "" }) {
      const key = sealingKey(keyring);
      const store = async (field: string, piece: Uint8Array) => {
        const sealed = sealBytes(key, nameOf(owner, field), piece);
        const args = [keys.prefix, owner, fence, field, sealed, now(), SPOOL_SEC, limit];
        const outcome = await ask((redis) => runScript(redis, ADD_CONTENT, [keys.open], args));
        if (outcome !== "ok") throw refused(owner, String(outcome), limit);
      };
      const hash = createHash("sha256");
      const piece = Buffer.allocUnsafe(PIECE_BYTES);
      let filled = 0;
      let bytes = 0;
      let index = 0;
      return {
        async add(more) {
          bytes += more.length;
          if (bytes > TRANSFER_LIMIT) throw tooLarge();
          hash.update(more);
          for (let at = 0; at < more.length; ) {
            const part = more.subarray(at, at + PIECE_BYTES - filled);
            piece.set(part, filled);
            filled += part.length;
            at += part.length;
            if (filled < PIECE_BYTES) return;
            await store(String(index++), piece);
            filled = 0;
          }
        },
        async end() {
          if (filled > 0 || index === 0) await store(String(index), piece.subarray(0, filled));
          const digest = { bytes, sha256: hash.digest("hex") };
          await store(END, Buffer.from(JSON.stringify(digest)));
          return digest;
        },
      };
    },

    async *read(owner, ask) {
      const whole = await digest(owner, ask);
      const hash = createHash("sha256");
      let bytes = 0;
      let next = load(owner, "0", ask);
      for (let index = 0; ; ) {
        const piece = await next;
        bytes += piece.length;
        hash.update(piece);
        const more = bytes < whole.bytes;
        if (more) next = load(owner, String(++index), ask);
        next.catch(() => {}); // a caller that leaves does not wait for it
        if (!more && (bytes > whole.bytes || hash.digest("hex") !== whole.sha256)) throw damaged(owner);
        if (piece.length > 0) yield piece;
        if (!more) return;
      }
    },

    async fetched(owner, ask) {
      await ask((redis) => redis.expire(keys.content(owner), FETCHED_SEC));
    },

    async remove(owner, ask) {
      await ask((redis) => runScript(redis, DROP_CONTENT, [keys.open], [keys.prefix, owner]));
    },
  };
}

export const tooLarge = (bytes?: number): FleetError =>
  new FleetError(
    "content_too_large",
    `${bytes === undefined ? "the content" : `the content of ${bytes} bytes`} is larger than ${TRANSFER_LIMIT} bytes, the most of one transfer; compress it, send it in parts, or let the sandbox fetch it (or put it) itself with a command`,
    { facts: { limit: TRANSFER_LIMIT, ...(bytes === undefined ? {} : { bytes }) } },
  );

export const contentGone = (owner: string): FleetError =>
  new FleetError("content_gone", "the content is not kept any more; transfer it again", {
    facts: { operation: owner },
  });

const damaged = (owner: string): FleetError =>
  new FleetError("content_damaged", "the content is not what was stored; transfer it again", {
    facts: { operation: owner },
  });

function refused(owner: string, outcome: string, limit: number): FleetError {
  if (outcome === "gone") return contentGone(owner);
  if (outcome === "full") {
    return new FleetError(
      "transfers_full",
      `${limit} bytes of uploads and downloads are on their way already; try again when some have ended`,
      { facts: { limit } },
    );
  }
  return new FleetError("lock_lost", `this run may no longer write the content of ${owner} (${outcome})`, {
    facts: { operation: owner, why: outcome },
  });
}
