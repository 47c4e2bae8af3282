/** Operations and the sandboxes they change: claimed, written and ended in atomic, fenced steps. For their begin see accept.ts. */
import { z } from "zod";
import { type ErrorRecord, FleetError, fromErrorRecord, toErrorRecord } from "../errors.ts";
import { type BatchId, newOperationId, OperationId, SandboxId, type ServiceName, type TeamId, Vmid } from "../ids.ts";
import { ExposedService, METADATA_LIMIT, TtlAction } from "../jobs/fields.ts";
import { LOCK_MS } from "../queues.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript, runScripts, type Script } from "../redis/script.ts";
import { remember } from "../remember.ts";
import {
  type Accepted,
  type AcceptRequest,
  ANY_SANDBOX,
  type ItemAcceptance,
  type ItemGroup,
  ItemReplies,
  inSteps,
  toAcceptArgs,
  toAccepted,
  toEndRequest,
  toItemAcceptance,
  toOneAcceptArgs,
} from "./accept.ts";
import { ACCEPT, ACCEPT_ITEMS, END_DUE } from "./accept-scripts.ts";
import { CLAIM } from "./claim-scripts.ts";
import { decodeHash, decodeText, encodeFields, type Fields, toHash } from "./codec.ts";
import type { Keys } from "./keys.ts";
import { CLAIM_ADDRESS, CLAIM_VMID, LEASE_ADDRESS, LEASE_VMID, MOVE_ADDRESS } from "./lease-scripts.ts";
import { type OutputEntry, toOutputWords } from "./output.ts";
import {
  ErrorRecordSchema,
  OperationRecord,
  type OperationStatus,
  SandboxRecord,
  SnapshotRecord,
  serviceField,
} from "./records.ts";
import { ADD_OUTPUT } from "./stream-scripts.ts";
import { INSPECT, MEND_TURNS } from "./sweep-scripts.ts";
import { ABORT, END, LEAVE_SOURCE, WRITE } from "./write-scripts.ts";

/** A Redis command that runs inside a fenced write. */
export type Command = readonly (string | number)[];

/** Changes that build on what the sandbox's record says at that moment. */
export interface SandboxPatch {
  /** null takes an entry away. */
  metadata?: Readonly<Record<string, string | null>> | undefined;
  /** Entries that `metadata` does not name go. */
  replace?: boolean;
  /** Seconds until its TTL is over. */
  endsIn?: number | "never" | undefined;
  /** `endsIn` may only move a time that is set, and only later. */
  extend?: boolean;
  /** TTL actions that have taken place: a TTL that is due and asks for one of them is over. */
  settles?: readonly TtlAction[];
  /** What the event `sandbox.updated` names; absent: no event. */
  fields?: readonly string[];
}

/** Changes that hold together or not at all. `null` deletes a property. */
export interface Write {
  operation?: Fields<OperationRecord>;
  sandbox?: Fields<z.output<typeof SandboxRecord>>;
  /** Throws `invalid_input` where it leaves too much metadata. */
  patch?: SandboxPatch;
  also?: readonly Command[];
  /** With an end only: the rest of the live output. */
  output?: readonly OutputEntry[] | undefined;
  /** It was placed, or steps aside: the next of its team has its turn in `place`. */
  leavesLine?: boolean;
  /** A member of a pool whose container becomes the sandbox's. Throws `member_taken` where it is not to be had any more. */
  member?: SandboxId;
  /** Slots that the run counts on: refused as `rewound` where Redis has lost one. */
  holds?: readonly string[];
}

export interface DuePage {
  /** There may be another page. */
  more: boolean;
  asked: { sandbox: SandboxId; operation: OperationId; action: TtlAction }[];
}

/** What a run shows with each write; the store counts on. */
export interface Writer {
  readonly id: OperationId;
  readonly fence: string;
  /** Of the operation's record, as this run left it. */
  revision: number;
}

/** What is sealed for an operation and for its sandbox; see `secrets.ts`. */
export interface Sealed {
  operation: string | null;
  sandbox: string | null;
}

export type Claim =
  | {
      outcome: "claimed";
      writer: Writer;
      /** Without a step that the claim itself has recorded. */
      operation: OperationRecord;
      sandbox: SandboxRecord;
      sealed: Sealed;
      /** It is on record as sent already: nothing is left to do before that. */
      sent: boolean;
    }
  | { outcome: "ended"; operation: OperationRecord }
  | { outcome: "unknown" }
  /** It is at the end of the line now, and needs a job there. */
  | { outcome: "again" }
  /** Of a later version than this: nothing was done to it. */
  | { outcome: "newer"; what: string }
  | { outcome: "stale" };

export interface OperationStore {
  /** Stores an operation once. Throws `idempotency_conflict`, `quota_exceeded`, `sandbox_not_found` or `sandbox_gone`. */
  accept(request: AcceptRequest): Promise<Accepted>;
  /**
   * Accepts what ends a page of sandboxes whose time is up, and tells of ends that come near: one step, so many workers share
   * them. `againMs`: until one is asked for again that has not ended. `now` (ms): in place of Redis' clock, by which ends are set.
   */
  endDue(page: { size: number; againMs: number; now?: number | undefined }): Promise<DuePage>;
  /** Stores items of a batch, in order and in one round trip, each once. Throws nothing that is about one item. */
  acceptItems(batch: BatchId, groups: readonly ItemGroup[]): Promise<ItemAcceptance[]>;
  /**
   * Makes `fence` the only one that may write. With `by`, only while that job carries the operation and holds its lock,
   * which is renewed; without, for the fleet's own clockwork.
   */
  claim(id: OperationId, fence: string, by?: { job: string; lockKey: string; lockToken: string }): Promise<Claim>;
  /**
   * Throws `lock_lost` when another run has claimed the operation, it has ended, or Redis lost an earlier write of this
   * run. One after the other: each builds on the one before. Returns operations that may go now.
   */
  write(writer: Writer, write: Write): Promise<OperationId[]>;
  /** Adds live output, and says how many listen to it; `refused` where this run may not write any more. */
  addOutput(writer: Writer, entries: readonly OutputEntry[]): Promise<number | "refused">;
  /** Ends it; returns parked operations that may go now. Throws as `write`, and instead of a success what it was aborted with. */
  end(writer: Writer, end: OperationEnd, write?: Write): Promise<OperationId[]>;
  /** The sandbox that was copied is needed no more; returns parked operations of it that may go now. Throws as `write`. */
  leaveSource(writer: Writer): Promise<OperationId[]>;
  /** Asks the operation to undo and end. */
  abort(id: OperationId, error: ErrorRecord, scope: TeamId | undefined): Promise<"ok" | "ended" | "unknown">;
  leaseVmid(writer: Writer, range: { first: number; last: number }): Promise<Vmid>;
  /** Leases one certain VMID, inside the range or not; returns who else has it, a sandbox or `STRAY`. */
  claimVmid(writer: Writer, vmid: Vmid): Promise<string | null>;
  /** An address of the range, with prefix length; the one that the sandbox has already, if any. */
  leaseAddress(writer: Writer, range: AddressRange): Promise<string>;
  /** Throws `address_refused` while another live sandbox has the address. */
  claimAddress(writer: Writer, address: string): Promise<void>;
  /** For those without a run: a running sandbox answers at another address than `from`. False: that one is another's. */
  moveAddress(sandbox: SandboxId, from: string, to: string): Promise<boolean>;
  load(id: OperationId): Promise<OperationRecord | null>;
  /** Makes up for records that somebody removed while it was their turn; returns operations that may go now. */
  mendTurns(): Promise<OperationId[]>;
  /** Which of the open operations accepted until a time (ms since the epoch) need help, and why: a page of them, from the oldest. */
  inspect(until: number, from?: OpenPage): Promise<{ found: InNeed[]; next: OpenPage | undefined }>;
  loadSandbox(id: SandboxId): Promise<SandboxRecord | null>;
  loadSnapshot(id: string): Promise<SnapshotRecord | null>;
}

export type OperationEnd =
  | { status: "succeeded"; result: unknown }
  | { status: "failed" | "canceled"; error: FleetError };

/** Where a look at open operations goes on: at those of a time, some of which were seen. */
export interface OpenPage {
  time: string;
  offset: number;
}

/** `jobless`: no job, or one that ended without ending the operation. `parked`: it has none yet, and may have waited too long. */
export interface InNeed {
  id: OperationId;
  state: "jobless" | "parked";
}

/** IPv4 addresses, both ends included. */
export interface AddressRange {
  first: string;
  last: string;
  /** Prefix length. */
  bits: number;
}

const toNumber = (ip: string) => ip.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);

export interface StoreOptions {
  /** How long an ended record is kept, in seconds. */
  retentionSec: number;
  /** Keys that seal secrets; needed where requests carry some. */
  keyring?: readonly Buffer[] | undefined;
  /** Bytes of ended operations to keep; 256 MiB when absent. */
  retentionBytes?: number;
  now?: () => number;
}

const InspectReply = z.tuple([z.string(), z.number(), z.array(z.tuple([OperationId, z.enum(["jobless", "parked"])]))]);
/** Operations that are looked at in one step. */
const INSPECTED = 500;
const SealedReply = z.tuple([z.string().nullable(), z.string().nullable(), z.number()]);
const EndDueReply = z.tuple([z.number(), z.array(z.tuple([SandboxId, OperationId, TtlAction]))]);

export function createOperationStore(redis: RedisConnection, keys: Keys, options: StoreOptions): OperationStore {
  const now = options.now ?? Date.now;
  const run = (script: Script, ...args: (string | number)[]) =>
    runScript(redis, script, [keys.open], [keys.prefix, ...args]);
  const runList = async (script: Script, ...args: (string | number)[]) =>
    (await run(script, ...args)) as [string, ...unknown[]]; // shapes: the scripts
  const ttl = options.retentionSec;
  const keyring = options.keyring ?? [];

  return {
    accept: async (request) => toAccepted(await run(ACCEPT, JSON.stringify(toOneAcceptArgs(request, now(), keyring)))),

    async endDue({ size, againMs, now: at }) {
      const requests = Object.fromEntries(TtlAction.options.map((action) => [action, toEndRequest(action, now())]));
      const ids = Array.from({ length: size }, newOperationId);
      const args = [JSON.stringify(requests), ANY_SANDBOX, JSON.stringify(ids), againMs, at ?? ""];
      const [more, asked] = EndDueReply.parse(await run(END_DUE, ...args));
      return { more: more === 1, asked: asked.map(([sandbox, operation, action]) => ({ sandbox, operation, action })) };
    },

    async acceptItems(batch, groups) {
      const asked = groups.map(({ request, items }) => ({ args: toAcceptArgs(request, now(), keyring), items }));
      const calls = inSteps(asked).map((step) => {
        const rows = step.map(({ args, items }) => [args, items.map(({ id, sandbox, index }) => [id, sandbox, index])]);
        return [keys.prefix, batch, JSON.stringify(rows)];
      });
      const replies = ItemReplies.parse(await runScripts(redis, ACCEPT_ITEMS, [keys.open], calls)).flat();
      return asked
        .flatMap(({ args, items }) => items.map((item) => ({ ...item, hash: args.hashes[0] ?? "" })))
        .map((item, at) => toItemAcceptance(item, replies[at] ?? ""));
    },

    async claim(id, fence, by) {
      const lock = [by?.lockKey ?? "", by?.lockToken ?? "", LOCK_MS];
      return toClaim(fence, await runList(CLAIM, id, fence, by?.job ?? "", now(), ...lock));
    },

    async write(writer, write) {
      const { id, fence, revision } = writer;
      const reply = await run(WRITE, id, fence, JSON.stringify(toWriteArgs(write)), now(), ttl, revision);
      const [outcome, ...released] = [reply].flat();
      if (outcome !== "ok") throw toRefusal(id, String(outcome));
      writer.revision++;
      return released as OperationId[]; // written by accept
    },

    async addOutput({ id, fence }, entries) {
      const listeners = await run(ADD_OUTPUT, id, fence, JSON.stringify(entries.map(toOutputWords)), now());
      return listeners === -1 ? "refused" : Number(listeners);
    },

    async end({ id, fence, revision }, end, write = {}) {
      const changes = toEndFields(end);
      const args = {
        ...toWriteArgs({ ...write, operation: { ...write.operation, ...changes } }),
        output: write.output?.map(toOutputWords),
        status: end.status,
        keepBytes: options.retentionBytes ?? 268_435_456,
        event: end.status === "succeeded" ? {} : { code: end.error.code },
      };
      const [outcome, ...released] = await runList(END, id, fence, JSON.stringify(args), now(), ttl, revision);
      if (outcome === "aborted") throw fromErrorRecord(ErrorRecordSchema.parse(JSON.parse(String(released[0]))));
      if (outcome !== "ok") throw toRefusal(id, outcome);
      return released as OperationId[]; // written by accept
    },

    async leaveSource(writer) {
      const { id, fence, revision } = writer;
      const [outcome, ...released] = await runList(LEAVE_SOURCE, id, fence, revision);
      if (outcome !== "ok") throw lockLost(id, outcome);
      writer.revision++;
      return released as OperationId[]; // written by accept
    },

    async abort(id, error, scope) {
      const outcome = await run(ABORT, id, JSON.stringify(error), scope ?? "");
      return outcome === "ok" || outcome === "ended" ? outcome : "unknown";
    },

    async leaseVmid(writer, { first, last }) {
      const { id, fence, revision } = writer;
      const [outcome, vmid] = await runList(LEASE_VMID, id, fence, first, last, revision, now());
      if (outcome === "ok") {
        writer.revision++;
        return Vmid.parse(Number(vmid));
      }
      if (outcome !== "exhausted") throw lockLost(id, outcome);
      throw new FleetError(
        "vmid_range_exhausted",
        `all VMIDs from ${first} to ${last} are taken; widen PVE_VMID_RANGE`,
      );
    },

    async claimVmid(writer, vmid) {
      const { id, fence, revision } = writer;
      const [outcome, holder] = await runList(CLAIM_VMID, id, fence, vmid, revision);
      if (outcome === "taken") return String(holder);
      if (outcome !== "ok") throw lockLost(id, outcome);
      writer.revision++;
      return null;
    },

    async leaseAddress(writer, { first, last, bits }) {
      const { id, fence, revision } = writer;
      const [outcome, address] = await runList(
        LEASE_ADDRESS,
        id,
        fence,
        toNumber(first),
        toNumber(last),
        bits,
        revision,
      );
      if (outcome === "ok") {
        writer.revision++;
        return String(address);
      }
      if (outcome !== "exhausted") throw lockLost(id, outcome);
      throw new FleetError("address_range_exhausted", "all addresses of PVE_IP_RANGE are leased; widen it");
    },

    async claimAddress(writer, address) {
      const { id, fence, revision } = writer;
      const outcome = await run(CLAIM_ADDRESS, id, fence, address, revision);
      if (outcome === "ok") {
        writer.revision++;
        return;
      }
      if (outcome !== "taken") throw lockLost(id, String(outcome));
      throw new FleetError("address_refused", `address ${address} belongs to another live sandbox`, {
        facts: { address },
      });
    },

    moveAddress: async (sandbox, from, to) => (await run(MOVE_ADDRESS, sandbox, from, to)) !== "taken",

    mendTurns: async () => OperationId.array().parse(await run(MEND_TURNS)),

    async inspect(until, { time, offset } = { time: "-inf", offset: 0 }) {
      const [next, passed, found] = InspectReply.parse(await run(INSPECT, time, offset, until, INSPECTED));
      return {
        found: found.map(([id, state]) => ({ id, state })),
        next: next === "" ? undefined : { time: next, offset: passed },
      };
    },

    async load(id) {
      const hash = await redis.hgetall(keys.operation(id));
      return hash["id"] === undefined ? null : decodeOperation(hash);
    },

    async loadSandbox(id) {
      const hash = await redis.hgetall(keys.sandbox(id));
      return hash["id"] === undefined ? null : decodeSandbox(hash);
    },

    async loadSnapshot(id) {
      const hash = await redis.hgetall(keys.snapshot(id));
      return hash["id"] === undefined ? null : decodeSnapshot(hash);
    },
  };
}

/** Of CLAIM's reply. Throws `internal` for a record that can't be read. */
export function toClaim(fence: string, [outcome, operation, sandbox, ...rest]: readonly unknown[]): Claim {
  switch (outcome) {
    case "claimed": {
      const record = decodeOperation(toHash(operation));
      const [own, owner, sent] = SealedReply.parse(rest);
      return {
        outcome,
        writer: { id: record.id, fence, revision: record.revision },
        operation: sent === 1 ? { ...record, step: undefined } : record,
        sandbox: knownSandbox(JSON.stringify(sandbox)),
        sealed: { operation: own, sandbox: owner },
        sent: sent === 1,
      };
    }
    case "ended":
      return { outcome, operation: decodeOperation(toHash(operation)) };
    case "newer":
      return { outcome, what: `${operation} of version ${sandbox}, sandbox ${rest[0] || "-"}` };
    case "stale":
    case "again":
      return { outcome };
    default:
      return { outcome: "unknown" };
  }
}

function decodeOperation(hash: Readonly<Record<string, string>>): OperationRecord {
  return decodeHash(OperationRecord, hash, `operation ${hash["id"]}`);
}

export function decodeSandbox(hash: Readonly<Record<string, string>>): SandboxRecord {
  const services = Object.entries(hash)
    .filter(([field]) => field.startsWith(serviceField("" as ServiceName))) // the bare prefix
    .map(([field, json]) => decodeText(ExposedService, json, `${field} of sandbox ${hash["id"]}`));
  return { ...decodeHash(SandboxRecord, hash, `sandbox ${hash["id"]}`), services };
}

export const decodeSnapshot = (hash: Readonly<Record<string, string>>): SnapshotRecord =>
  decodeHash(SnapshotRecord, hash, `snapshot ${hash["id"]}`);

/** Commands of one sandbox come one after the other, and find it as it was. */
const knownSandbox = remember((reply): Readonly<SandboxRecord> => decodeSandbox(toHash(JSON.parse(reply))), {
  most: 256,
});

function toWriteArgs(write: Write) {
  return {
    operation: encodeFields(write.operation ?? {}),
    ...(write.sandbox ? { sandbox: encodeFields(write.sandbox) } : {}),
    ...(write.patch ? { patch: write.patch } : {}),
    also: (write.also ?? []).map((command) => command.map(String)),
    leavesLine: write.leavesLine === true,
    member: write.member,
    holds: write.holds ?? [],
  };
}

function toEndFields(end: OperationEnd): Fields<OperationRecord> & { status: OperationStatus } {
  if (end.status === "succeeded") return { status: end.status, result: end.result, lastError: null, abort: null };
  return { status: end.status, error: toErrorRecord(end.error) };
}

function toRefusal(id: OperationId, outcome: string): FleetError {
  if (outcome === "taken") return new FleetError("member_taken", "the member of the pool is not to be had any more");
  if (outcome !== "full") return lockLost(id, outcome);
  return new FleetError("invalid_input", `metadata: at most ${METADATA_LIMIT} entries; take some away first`, {
    facts: { fields: ["metadata"] },
  });
}

function lockLost(id: OperationId, why: string): FleetError {
  return new FleetError("lock_lost", `this run may no longer write operation ${id} (${why})`, {
    facts: { operation: id, why },
  });
}
