/** Operations and the sandboxes they change: accepted, claimed, written and ended in atomic, fenced steps. */
import { createHash, createHmac } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import { type ErrorRecord, FleetError, fromErrorRecord, toErrorRecord } from "../errors.ts";
import { type BatchId, newOperationId, OperationId, SandboxId, type ServiceName, TeamId, Vmid } from "../ids.ts";
import type { JobSpec } from "../jobs/define-job.ts";
import { ExposedService, METADATA_LIMIT, TtlAction } from "../jobs/fields.ts";
import { poolOf } from "../jobs/fits-pool.ts";
import { type JobName, jobs, parseInput } from "../jobs/index.ts";
import type { ProvisionInput } from "../jobs/provision.ts";
import { LOCK_MS, PLACE } from "../queues.ts";
import type { RedisConnection } from "../redis/connect.ts";
import { runScript, runScripts, type Script } from "../redis/script.ts";
import { ACCEPT, ACCEPT_ITEMS, END_DUE } from "./accept-scripts.ts";
import { CLAIM } from "./claim-scripts.ts";
import { decodeHash, encodeFields, type Fields, toHash } from "./codec.ts";
import { contentGone } from "./contents.ts";
import type { Keys } from "./keys.ts";
import { CLAIM_ADDRESS, CLAIM_VMID, LEASE_ADDRESS, LEASE_VMID, MOVE_ADDRESS } from "./lease-scripts.ts";
import { type OutputEntry, toOutputWords } from "./output.ts";
import { QUOTA_NAMES, type QuotaClass } from "./quota-names.ts";
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
import { ttlTooLong } from "./ttl.ts";
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

export interface AcceptRequest {
  id: OperationId;
  kind: JobName;
  sandbox: SandboxId;
  team: TeamId;
  /** Refuse sandboxes of other teams. */
  scope: TeamId | undefined;
  /** Without its secrets. */
  input: unknown;
  /** What was sealed apart from it; tells requests apart like the rest of the input. */
  secrets: unknown;
  idempotencyKey: string | undefined;
  /** Who is told what its end was, see `keys.told`. */
  listener?: string | undefined;
  /** Waits behind interactive work. */
  batch: boolean;
  /** Where a quota of the team has no room; refused with `quota_exceeded` when absent. */
  onQuota?: OnQuota | undefined;
  /** For `template`: the sandbox that is copied; the operation takes its turn among that one's, too. */
  source?: SandboxId;
  /** See `currentTrace`. */
  trace?: string | undefined;
  /** For kinds that make a sandbox: the record to begin with, without its ids. */
  newSandbox: Fields<z.output<typeof SandboxRecord>> | undefined;
}

/**
 * `refuse`: throws `quota_exceeded`. `wait`: it is accepted, and goes when there is room, first come, first served.
 * `ignore`: for the fleet's own operations; they count for no quota.
 */
export type OnQuota = "refuse" | "wait" | "ignore";

export interface Accepted {
  id: OperationId;
  sandbox: SandboxId;
  /** The sandbox's team. */
  team: TeamId;
  /** Another request with the same idempotency key made it. */
  existing: boolean;
  /** It may go and has no job yet: who asked adds it. */
  needsJob: boolean;
  queue: string;
  priority: number;
}

export interface DuePage {
  /** There may be another page. */
  more: boolean;
  asked: { sandbox: SandboxId; operation: OperationId; action: TtlAction }[];
}

/** Items of a batch that ask for the same. */
export interface ItemGroup {
  request: Omit<AcceptRequest, "id" | "sandbox" | "idempotencyKey">;
  items: readonly { id: OperationId; sandbox: SandboxId; index: number }[];
}

/** What became of an item of a batch; `known`: it had been accepted or refused before. */
export type ItemAcceptance =
  | { outcome: "accepted"; accepted: Accepted }
  | { outcome: "known" }
  | { outcome: "stopped" }
  /** `hash` tells its input apart. */
  | { outcome: "refused"; error: FleetError; hash: string };

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

/**
 * What tells two inputs apart, whatever the order of their keys; the first is kept with the record, any may match.
 * With secrets they are keyed, one for each key: a plain hash of a short secret would give it away.
 */
export function hashInput(kind: JobName, input: unknown, secrets: unknown, keyring: readonly Buffer[]): string[] {
  const text = `${kind} ${canonical(withoutDefaults(kind, input))}`;
  if (secrets === undefined) return [createHash("sha256").update(text).digest("base64url")];
  return keyring.map((key) =>
    createHmac("sha256", key)
      .update(`${text} ${canonical(secrets)}`)
      .digest("base64url"),
  );
}

/** What a later version adds with a default must not make the same input another: names outlive versions. */
function withoutDefaults(kind: JobName, input: unknown): unknown {
  const fields: Readonly<Record<string, unknown>> = jobs[kind].input.shape;
  const isDefault = ([name, value]: [string, unknown]) => {
    const field = fields[name];
    return field instanceof z.ZodDefault && isDeepStrictEqual(field.def.defaultValue, value);
  };
  return Object.fromEntries(Object.entries(input ?? {}).filter((entry) => !isDefault(entry)));
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  entries.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, one]) => `${JSON.stringify(key)}:${canonical(one)}`).join(",")}}`;
}

const InspectReply = z.tuple([z.string(), z.number(), z.array(z.tuple([OperationId, z.enum(["jobless", "parked"])]))]);
/** Operations that are looked at in one step. */
const INSPECTED = 500;
const SealedReply = z.tuple([z.string().nullable(), z.string().nullable(), z.number()]);
const EndDueReply = z.tuple([z.number(), z.array(z.tuple([SandboxId, OperationId, TtlAction]))]);
const AcceptReply = z.tuple([z.string(), OperationId, SandboxId], z.string());

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
      return hash["id"] === undefined ? null : decodeHash(SnapshotRecord, hash, `snapshot ${id}`);
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
        sandbox: decodeSandbox(toHash(sandbox)),
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

const Facets = z.tuple([z.string(), z.string(), z.coerce.number(), TeamId]);
const ItemReplies = z.array(z.array(z.string()));

/** Of ACCEPT's reply. Throws what it was refused for. */
function toAccepted(reply: unknown): Accepted {
  const accepted = toAcceptedOrNot(reply);
  if (accepted instanceof FleetError) throw accepted;
  return accepted;
}

function toAcceptedOrNot(reply: unknown): Accepted | FleetError {
  const [outcome, id, sandbox, ...facets] = AcceptReply.parse(reply);
  if (outcome !== "accepted" && outcome !== "existing") return toNotAccepted(outcome, { id, sandbox, facets });
  const [parked, queue, priority, team] = Facets.parse(facets);
  const existing = outcome === "existing";
  return { id, sandbox, team, existing, needsJob: !existing && parked === "0" && queue === PLACE, queue, priority };
}

function toNotAccepted(
  outcome: string,
  { id, sandbox, facets }: { id: OperationId; sandbox: SandboxId; facets: readonly string[] },
): FleetError {
  switch (outcome) {
    case "conflict":
      return new FleetError(
        "idempotency_conflict",
        `this idempotency key belongs to ${id}, which had other input; use a new key`,
        { facts: { operation: id, sandbox } },
      );
    case "instance_taken":
    case "instance_conflict": {
      const known = outcome === "instance_conflict";
      const whose = known ? `belongs to sandbox ${sandbox}, which was asked for with other input` : "is taken";
      const text = `this instance id ${whose}; choose another`;
      return new FleetError("idempotency_conflict", text, { facts: known ? { sandbox } : {} });
    }
    case "instance_going":
      return new FleetError("sandbox_gone", `sandbox ${sandbox}, which has this instance id, is being destroyed`, {
        facts: { sandbox },
      });
    case "item_conflict":
      return itemConflict();
    case "batch_not_found":
      return new FleetError("batch_not_found", "the batch is not known (any more)");
    case "quota_exceeded":
      return toQuotaExceeded(facets[0] ?? "");
    case "ttl_too_long":
      return ttlTooLong(Number(facets[0]), { field: "ttlSeconds", asked: facets[1] });
    case "content_gone":
      return contentGone(id);
    case "in_pool":
      return new FleetError(
        "not_running",
        `sandbox ${sandbox} waits in a pool: it can be destroyed, and nothing else`,
        {
          facts: { sandbox },
        },
      );
    case "sandbox_gone":
      return new FleetError("sandbox_gone", `sandbox ${sandbox} has ended`, { facts: { sandbox } });
    default:
      return new FleetError("sandbox_not_found", `there is no sandbox ${sandbox}`, { facts: { sandbox } });
  }
}

export const itemConflict = (): FleetError =>
  new FleetError(
    "idempotency_conflict",
    "this item of the batch had other input before, or is none of it; use a new batch id",
  );

/** By hand: ten thousand of them through a schema each cost as much as all the rest. */
function toItemAcceptance(
  { id, sandbox, hash }: { id: OperationId; sandbox: SandboxId; hash: string },
  reply: string,
): ItemAcceptance {
  const [outcome = "", ...facets] = reply.split(" ");
  const [parked, queue = "", priority, team] = facets;
  switch (outcome) {
    case "accepted": {
      const rest = { team: team as TeamId, needsJob: parked === "0", queue, priority: Number(priority) }; // as it was asked for
      return { outcome, accepted: { id, sandbox, existing: false, ...rest } };
    }
    case "item_known":
      return { outcome: "known" };
    case "batch_stopped":
      return { outcome: "stopped" };
    default:
      return { outcome: "refused", error: toNotAccepted(outcome, { id, sandbox, facets }), hash };
  }
}

function decodeOperation(hash: Readonly<Record<string, string>>): OperationRecord {
  return decodeHash(OperationRecord, hash, `operation ${hash["id"]}`);
}

export function decodeSandbox(hash: Readonly<Record<string, string>>): SandboxRecord {
  const services = Object.entries(hash)
    .filter(([field]) => field.startsWith(serviceField("" as ServiceName))) // the bare prefix
    .map(([, json]) => ExposedService.parse(JSON.parse(json)));
  return { ...decodeHash(SandboxRecord, hash, `sandbox ${hash["id"]}`), services };
}

/** Items that are accepted in one step: thousands would keep Redis from everybody else. */
const STEP = 50;

function inSteps<T extends { items: readonly unknown[] }>(groups: readonly T[]): T[][] {
  const steps: T[][] = [];
  let room = 0;
  for (const group of groups) {
    for (let at = 0; at < group.items.length; ) {
      if (room === 0) {
        steps.push([]);
        room = STEP;
      }
      const items = group.items.slice(at, at + room);
      steps.at(-1)?.push({ ...group, items });
      at += items.length;
      room -= items.length;
    }
  }
  return steps;
}

/** In `place`: what fills pools waits behind every team's work, and nothing gives way to it. */
const PRIORITY = { interactive: 1, batch: 2, pool: 3 };

/** What does not depend on which operation it becomes: the script adds the ids. */
function toAcceptArgs(request: ItemGroup["request"], now: number, keyring: readonly Buffer[]) {
  const spec: JobSpec = jobs[request.kind];
  const lane = request.newSandbox?.pool == null ? (request.batch ? "batch" : "interactive") : "pool";
  const hashes = hashInput(request.kind, request.input, request.secrets, keyring);
  const priority = spec.queue !== "place" ? 0 : PRIORITY[lane];
  const operation: Fields<OperationRecord> = {
    kind: request.kind,
    input: request.input,
    inputHash: hashes[0] ?? "",
    status: "queued",
    version: spec.version,
    seq: 0,
    priority,
    claims: 0,
    attempts: 0,
    trace: request.trace,
    acceptedAt: now,
  };
  return {
    kind: request.kind,
    team: request.team,
    scope: request.scope,
    route: spec.queue,
    destroys: request.kind === "destroy",
    batch: request.batch,
    lane,
    pool: request.kind === "provision" && lane !== "pool" ? poolOf(request.input as ProvisionInput) : undefined, // parsed as that
    onQuota: request.onQuota,
    sealed: request.secrets !== undefined,
    priority: String(priority),
    class: toQuotaClass(request),
    source: request.source,
    trace: request.trace,
    hashes,
    uses: spec.uses === true,
    once: spec.onceUnless !== undefined && AnyFields.safeParse(request.input).data?.[spec.onceUnless] !== true,
    instance: request.newSandbox?.instanceId,
    ttl: toAskedTtl(request),
    now,
    operationSet: encodeFields(operation).set,
    sandboxSet: encodeFields(request.newSandbox ?? {}).set,
  };
}

function toOneAcceptArgs(request: AcceptRequest, now: number, keyring: readonly Buffer[]) {
  const { id, sandbox, idempotencyKey: key, listener } = request;
  // Hashed, since a caller's key may hold anything and becomes part of a Redis key.
  const idempotency = key === undefined ? undefined : createHash("sha256").update(key).digest("base64url");
  return { ...toAcceptArgs(request, now, keyring), id, sandbox, idempotency, listener };
}

/** In its place comes each sandbox that is due. */
const ANY_SANDBOX = SandboxId.parse(`sbx_${"0".repeat(16)}`);

/** Of END_DUE. It has no idempotency key: the step that accepts it is the one that finds it due. */
function toEndRequest(action: TtlAction, now: number) {
  const kind: JobName = action === "destroy" ? "destroy" : "power";
  const rest = action === "destroy" ? {} : { action, allowStop: true, ifExpired: true };
  const input = parseInput(kind, { sandboxId: ANY_SANDBOX, ...rest });
  const own = { team: TeamId.parse("any"), scope: undefined, secrets: undefined, batch: false, newSandbox: undefined };
  const args = toAcceptArgs({ kind, input, ...own, onQuota: "ignore" }, now, []);
  return { ...args, hashes: [], operationSet: [...args.operationSet, ...encodeFields({ inputHash: "" }).set] };
}

const AnyFields = z.record(z.string(), z.unknown());
const AskedTtl = z.object({ ttlSeconds: z.number().nullable() });

/** Held against the workers' maximum; undefined: none is asked for. */
function toAskedTtl({ kind, input }: ItemGroup["request"]): number | "never" | undefined {
  const asked = kind === "provision" || kind === "update" ? AskedTtl.safeParse(input).data : undefined;
  return asked && (asked.ttlSeconds ?? "never");
}

/** What it counts for; undefined: nothing. */
function toQuotaClass({ kind, input, onQuota }: ItemGroup["request"]): QuotaClass | undefined {
  const { frees, quotas = "others" }: JobSpec = jobs[kind];
  const values = frees === undefined ? {} : (AnyFields.safeParse(input).data ?? {});
  const isFreeing =
    frees === true || Object.entries(frees ?? {}).some(([field, ones]) => ones.some((one) => one === values[field]));
  return isFreeing || onQuota === "ignore" ? undefined : quotas;
}

const Shortage = z.object({
  team: TeamId,
  quota: z.enum(QUOTA_NAMES),
  limit: z.number(),
  used: z.number(),
  /** Others of the team that wait for room and go first. */
  waiting: z.number().optional(),
  /** For the rate: when there will be room. */
  retryAfterMs: z.number().optional(),
});

function toQuotaExceeded(json: string): FleetError {
  const { team, quota, limit, used, waiting = 0, retryAfterMs } = Shortage.parse(JSON.parse(json));
  const rate = quota === "rate";
  const numbers = `${used} of ${limit} ${rate ? "operations a minute" : quota}`;
  const others = waiting > 0 ? `, and ${waiting} of its operations wait for room` : "";
  const soon = retryAfterMs === undefined ? "ask again later" : `ask again in ${Math.ceil(retryAfterMs / 1_000)} s`;
  const way = rate ? soon : "ask again when some have ended";
  const text = `team ${team} has ${numbers}${others}; ${way}, or let it wait with onQuota "wait"`;
  return new FleetError("quota_exceeded", text, {
    facts: { team, quota, limit, used, waiting, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) },
  });
}

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
