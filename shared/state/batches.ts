/** Batches: many operations under one id, with counts that the steps of their operations keep. */
import { z } from "zod";
import { type ErrorRecord, FleetError, type FleetErrorCode, toErrorRecord } from "../errors.ts";
import { type BatchId, OperationId, SandboxId, type TeamId } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript, type Script } from "../redis/script.ts";
import { itemConflict } from "./accept.ts";
import {
  ABORT_ITEMS,
  CLOSE_BATCH,
  COUNT_UNDONE,
  NOTE_UNDO,
  OPEN_BATCH,
  REJECT_ITEM,
  STOP_BATCH,
} from "./batch-scripts.ts";
import { decodeHash, type PassOver, readable } from "./codec.ts";
import type { Keys } from "./keys.ts";
import { type BatchPolicy, BatchRecord, Code, ErrorRecordSchema } from "./records.ts";

export type BatchStop = NonNullable<BatchRecord["stop"]>;

/** One ended item. `operation` is absent for one that became none. */
export interface ItemEnd {
  index: number;
  operation: OperationId | undefined;
  /** Of one that succeeded: what it made or was about. */
  sandbox: SandboxId | undefined;
  /** Why it did not succeed. */
  code: FleetErrorCode | undefined;
}

export interface BatchStore {
  /** Throws `idempotency_conflict` where the id is another's, or had another policy or size. */
  open(batch: {
    id: BatchId;
    team: TeamId;
    policy: BatchPolicy;
    size: number | undefined;
    /** See `currentTrace`. */
    trace?: string | undefined;
  }): Promise<void>;
  /** Nothing more will be added. */
  close(id: string): Promise<void>;
  /** An item that can become no operation; `hash` tells its input apart. Throws `batch_not_found`, `idempotency_conflict`. */
  reject(id: BatchId, index: number, hash: string, error: FleetError): Promise<"ok" | "known" | "stopped">;
  /** From this step on nothing of it begins. */
  stop(id: BatchId, how: BatchStop, why: ErrorRecord, scope: TeamId | undefined): Promise<"ok" | "ended" | "unknown">;
  load(id: string): Promise<BatchRecord | null>;
  /** Of the call that opened it. */
  traceOf(id: string): Promise<string | null>;
  /** Newest first. */
  list(passOver: PassOver): Promise<BatchRecord[]>;
  /** Ended items in the order of their ends, from a position on, as they are kept. */
  ends(id: BatchId, from: number, count: number): Promise<string[]>;
  loadRejection(id: BatchId, index: number): Promise<ErrorRecord | null>;
  /** For the workers: flags items of a stopped batch; returns those that wait. */
  abortItems(id: BatchId, operations: readonly string[]): Promise<OperationId[]>;
  /** For the workers: notes what an undo has to destroy; returns how many items were looked at. */
  noteUndo(id: BatchId): Promise<number>;
  countUndone(id: BatchId, what: "undone" | "undoFailed", sandboxes: readonly SandboxId[]): Promise<void>;
}

/** `retentionSec`: how long an ended batch is kept, where no operation's end decides it. */
export function createBatchStore(
  redis: RedisConnection,
  keys: Keys,
  { retentionSec }: { retentionSec: number },
): BatchStore {
  const run = (script: Script, ...args: (string | number)[]) =>
    runScript(redis, script, [keys.open], [keys.prefix, ...args]);
  const now = Date.now;
  const load = async (id: string) => {
    const hash = await redis.hgetall(keys.batch(id));
    return hash["id"] === undefined ? null : decodeBatch(hash);
  };
  return {
    async open({ id, team, policy, size, trace }) {
      const outcome = await run(OPEN_BATCH, id, team, policy, size ?? "", now(), trace ?? "");
      if (outcome === "opened" || outcome === "existing") return;
      const what = outcome === "taken" ? "belongs to another team" : "had another policy or count";
      throw new FleetError("idempotency_conflict", `batch ${id} ${what}; use a new id`, { facts: { batch: id } });
    },
    async close(id) {
      await run(CLOSE_BATCH, id, now(), retentionSec);
    },
    async reject(id, index, hash, error) {
      const record = JSON.stringify(toErrorRecord(error));
      const outcome = await run(REJECT_ITEM, id, index, hash, record, error.code, now());
      if (outcome === "conflict") throw itemConflict();
      if (outcome === "unknown") throw batchNotFound(id);
      return z.enum(["ok", "known", "stopped"]).parse(outcome);
    },
    async stop(id, how, why, scope) {
      const outcome = await run(STOP_BATCH, id, how, JSON.stringify(why), scope ?? "", now(), retentionSec);
      return z.enum(["ok", "ended", "unknown"]).parse(outcome);
    },
    load,
    traceOf: (id) => redis.hget(keys.batch(id), "trace"),
    async list(passOver) {
      const ids = await redis.zrevrange(keys.batches, 0, -1);
      const found = await Promise.all(ids.map((id) => redis.hgetall(keys.batch(id))));
      return readable(
        found.filter(({ id }) => id !== undefined),
        decodeBatch,
        passOver,
      );
    },
    ends: (id, from, count) => redis.lrange(keys.batchEnds(id), from, from + count - 1),
    async loadRejection(id, index) {
      const json = await redis.hget(keys.batchRejected(id), String(index));
      return json === null ? null : ErrorRecordSchema.parse(JSON.parse(json));
    },
    async abortItems(id, operations) {
      return z.array(OperationId).parse(await run(ABORT_ITEMS, id, ...operations));
    },
    noteUndo: async (id) => Number(await run(NOTE_UNDO, id)),
    async countUndone(id, what, sandboxes) {
      await run(COUNT_UNDONE, id, now(), retentionSec, what, ...sandboxes);
    },
  };
}

export const batchNotFound = (id: string): FleetError =>
  new FleetError("batch_not_found", `there is no batch ${id} (any more)`, { facts: { batch: id } });

const CODE_FIELD = "code:";

function decodeBatch(hash: Readonly<Record<string, string>>): BatchRecord {
  const codes = Object.entries(hash).flatMap(([field, count]) => {
    const code = Code.safeParse(field.slice(CODE_FIELD.length));
    return field.startsWith(CODE_FIELD) && code.success ? [[code.data, Number(count)] as const] : [];
  });
  return { ...decodeHash(BatchRecord, hash, `batch ${hash["id"]}`), codes: Object.fromEntries(codes) };
}

const Entry = z.tuple([z.coerce.number().int(), z.string(), z.enum(["succeeded", "failed", "canceled"]), z.string()]);

/** `index operation status detail`: the detail is an error's code or a sandbox, the operation `-` where there is none. */
export function toItemEnd(entry: string): ItemEnd {
  const [index, operation, status, detail] = Entry.parse(entry.split(" "));
  return {
    index,
    operation: operation === "-" ? undefined : OperationId.parse(operation),
    sandbox: status === "succeeded" ? SandboxId.parse(detail) : undefined,
    code: status === "succeeded" ? undefined : Code.parse(detail),
  };
}
