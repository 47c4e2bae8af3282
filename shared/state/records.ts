/** What is kept of an operation and of a sandbox. */
import { z } from "zod";
import type { FleetErrorCode } from "../errors.ts";
import { POLICY } from "../errors.ts";
import {
  BatchId,
  InstanceId,
  NodeName,
  OperationId,
  SandboxId,
  type ServiceName,
  SnapshotId,
  TeamId,
  Vmid,
} from "../ids.ts";
import { type ExposedService, IdleAction, IdleSeconds, Metadata, TtlAction } from "../jobs/fields.ts";
import { type JobName, jobs } from "../jobs/index.ts";
import { QUOTA_NAMES } from "./quota-names.ts";

const Kind = z.enum(Object.keys(jobs) as [JobName, ...JobName[]]); // Object.keys loses the literal keys
/** A code that a newer version has is told as `internal` here, with the text that came with it. */
export const Code = z.enum(Object.keys(POLICY) as [FleetErrorCode, ...FleetErrorCode[]]).catch("internal"); // as above

export const ErrorRecordSchema = z.object({
  code: Code,
  message: z.string(),
  facts: z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.null(), z.array(z.string()).readonly()])),
});

export const OPERATION_STATUSES = ["queued", "running", "succeeded", "failed", "canceled"] as const;
export type OperationStatus = (typeof OPERATION_STATUSES)[number];

export const OperationRecord = z.object({
  id: OperationId,
  kind: Kind,
  /** Of the kind, as its producer knows it: see `JobSpec`. */
  version: z.number().int().default(1),
  team: TeamId,
  sandbox: SandboxId,
  /** Of `template`: the sandbox in whose line it stands as well, until it needs that one no more. */
  source: SandboxId.optional(),
  input: z.unknown(),
  /** `""`: the clockwork asked for it, and nothing in it is secret. */
  inputHash: z.string(),
  status: z.enum(OPERATION_STATUSES),
  /** BullMQ queue and job that carry it now. */
  queue: z.string(),
  job: z.string(),
  /** How often it moved to another queue. */
  seq: z.number().int(),
  /** Set while it waits for another operation of its sandbox, or for a quota; it has no job then. */
  parked: z.number().int(),
  /** The quota of its team that it waits for. */
  quota: z.enum(QUOTA_NAMES).optional(),
  priority: z.number().int(),
  /** The pool that may serve it. */
  warm: z.string().optional(),
  /** Of batch work whose turn it is: how often interactive work of other teams may still go before it. */
  givesWay: z.number().int().optional(),
  /** The batch that it is an item of, and which one. */
  batch: BatchId.optional(),
  item: z.number().int().optional(),
  /** Token of the run that may write; compared for equality only. */
  fence: z.string().optional(),
  /** Counts claims and writes, so that a run notices when Redis has come back with an earlier state. */
  revision: z.number().int().default(0),
  /** Runs begun, those that died in the middle included. */
  claims: z.number().int(),
  /** Runs that ended in an error. */
  attempts: z.number().int(),
  /** Why it is not running yet, for people. */
  waitingFor: z.string().optional(),
  /** Set by cancel, destroy or time-out: the next run undoes and ends with this. */
  abort: ErrorRecordSchema.optional(),
  /** The node that gave it back to placement, which leaves that one alone until then (ms since the epoch). */
  avoid: z.object({ node: NodeName, until: z.number() }).optional(),
  /** The last error that was retried. */
  lastError: ErrorRecordSchema.optional(),
  /**
   * What was last begun, written before PVE is asked. `open`: a PVE task of it may be running; without `upid` it is not
   * even known whether PVE took the request. `node`: where it went, when not to the sandbox's node.
   */
  step: z
    .object({
      name: z.string(),
      at: z.number(),
      open: z.boolean().optional(),
      upid: z.string().optional(),
      node: NodeName.optional(),
    })
    .optional(),
  /** Of `restore` and `migrate`: what its sandbox did before. */
  before: z.enum(["running", "paused", "stopped"]).optional(),
  /** Of `build`: how many of its files and commands are done. */
  done: z.number().int().optional(),
  /** Of `migrate`: where it stood, and where it was sent. */
  from: NodeName.optional(),
  target: NodeName.optional(),
  /** Of `template`: the networks that the copy gets again once it is cleaned, by key of its config. */
  networks: z.record(z.string(), z.string()).optional(),
  /** Of `replicate`: the storage with the archive that it makes of the template. */
  archive: z.object({ storage: z.string(), vmid: Vmid }).optional(),
  timings: z.record(z.string(), z.number()).default({}),
  result: z.unknown().optional(),
  error: ErrorRecordSchema.optional(),
  /** How far its live output came, see `output.ts`; absent where all of it is in the result. */
  output: z.string().optional(),
  /** The trace of the call that asked for it, see `currentTrace`; each of its jobs goes on with that. */
  trace: z.string().optional(),
  acceptedAt: z.number(),
  startedAt: z.number().optional(),
  endedAt: z.number().optional(),
});
export type OperationRecord = z.output<typeof OperationRecord>;

/** What of an ended record its waiters need; the input may be long and is not among it. */
export const EndedOperation = OperationRecord.pick({
  id: true,
  kind: true,
  team: true,
  sandbox: true,
  status: true,
  result: true,
  error: true,
  output: true,
});
export type EndedOperation = z.output<typeof EndedOperation>;
export const ENDED_FIELDS: readonly string[] = Object.keys(EndedOperation.shape);

export const isEnded = (status: OperationStatus): status is "succeeded" | "failed" | "canceled" =>
  status !== "queued" && status !== "running";

/** While in one of these, a provision is at work; exec and its like wait. */
export const PROVISIONAL_STATES = ["placing", "cloning", "configuring", "starting", "readying"] as const;
/** No container (any more); the record stays for the retention time. */
export const GONE_STATES = [
  "destroyed",
  "failed",
  "lost",
  /** A member of a pool whose container is another sandbox's now. */
  "claimed",
] as const;
export const SANDBOX_STATES = [
  ...PROVISIONAL_STATES,
  /** Made before it is asked for: runs in a pool until a provision claims it. */
  "warm",
  "running",
  "paused",
  "stopped",
  /** For good: a PVE template that provisions clone. */
  "template",
  "destroying",
  "quarantined",
  ...GONE_STATES,
] as const;
export type SandboxState = (typeof SANDBOX_STATES)[number];

export const isGone = (state: SandboxState): boolean => (GONE_STATES as readonly string[]).includes(state);
export const isProvisional = (state: SandboxState): boolean =>
  (PROVISIONAL_STATES as readonly string[]).includes(state);

/** Whether a provision in the one state has yet to come to the other. */
export const isBefore = (state: SandboxState, other: (typeof PROVISIONAL_STATES)[number]): boolean =>
  (PROVISIONAL_STATES as readonly string[]).indexOf(state) < PROVISIONAL_STATES.indexOf(other);

export const SandboxRecord = z.object({
  id: SandboxId,
  /** The provision that made it. */
  operation: OperationId,
  team: TeamId,
  instanceId: InstanceId.optional(),
  template: z.string(),
  /** Of a template: the sandbox that it is a copy of. */
  source: SandboxId.optional(),
  /** Of a template, for people: which of those with this name it is. */
  version: z.string().optional(),
  /** Of a member of a pool: the template that the pool was set for. */
  pool: z.string().optional(),
  /** Of such a member: the replica that it was cloned from, as that was then; see `toMadeOf`. */
  madeOf: z.string().optional(),
  /** Of such a member: the Redis server, by its start, that has known it as ready; see `pools.ts`. */
  warmOn: z.string().optional(),
  /** The member of a pool that its container was made as; until the stamp has followed it names that one. */
  member: SandboxId.optional(),
  /** Of a member that was claimed: the sandbox whose container it is now. */
  became: SandboxId.optional(),
  state: z.enum(SANDBOX_STATES),
  /** When it came into this state; tells one sleep from the next. */
  stateAt: z.number().optional(),
  node: NodeName.optional(),
  vmid: Vmid.optional(),
  hostname: z.string().optional(),
  /** What people and the gate reach it by; inside SANDBOX_CIDRS and on the MAC of net0. */
  address: z.string().optional(),
  hwaddr: z.string().optional(),
  /** A leased address with prefix length, from PVE_IP_RANGE. */
  leasedIp: z.string().optional(),
  metadata: Metadata.default({}),
  ttlSeconds: z.number().int().optional(),
  ttlAction: TtlAction.default("destroy"),
  /** Each use moves the end to `ttlSeconds` after it. */
  ttlExtendOnUse: z.boolean().default(false),
  /** Absent: never, or a stop or pause was its end. */
  expiresAt: z.number().optional(),
  /** Absent: it may be idle for ever. */
  idleSeconds: IdleSeconds.optional(),
  idleAction: IdleAction.default("pause"),
  wakeOnHttp: z.boolean().default(false),
  createdAt: z.number(),
  runningAt: z.number().optional(),
  endedAt: z.number().optional(),
});
export type SandboxRecord = z.output<typeof SandboxRecord> & { services: ExposedService[] };

/** Hash field of one service; a field each, so that expose and hide never overwrite one another. */
export const serviceField = (name: ServiceName): string => `service:${name}`;

/** What a batch's first failed item means for the others. */
export const BATCH_POLICIES = ["keep", "stop", "undo"] as const;
export type BatchPolicy = (typeof BATCH_POLICIES)[number];

export const BatchRecord = z.object({
  id: BatchId,
  team: TeamId,
  policy: z.enum(BATCH_POLICIES),
  /** How many items it will have, where that was known at the beginning. */
  size: z.number().int().optional(),
  /** 1 while its producer may add items. */
  open: z.number().int(),
  /** `stop` ends what has not begun, `cancel` all that has not ended, `undo` destroys what was made, too. */
  stop: z.enum(["stop", "cancel", "undo"]).optional(),
  /** Why it was stopped. */
  reason: ErrorRecordSchema.optional(),
  /** Items by status. Those that became no operation count as failed. */
  queued: z.number().int(),
  running: z.number().int(),
  succeeded: z.number().int(),
  failed: z.number().int(),
  canceled: z.number().int(),
  /** Sandboxes that its undo has destroyed, and those that only a human can clear. */
  undone: z.number().int(),
  undoFailed: z.number().int(),
  createdAt: z.number(),
  endedAt: z.number().optional(),
  /** Of the call that opened it, see `currentTrace`; its items' own traces link to that. */
  trace: z.string().optional(),
});
/** `codes`: how many items ended with which error. */
export type BatchRecord = z.output<typeof BatchRecord> & { codes: Partial<Record<FleetErrorCode, number>> };

export const SnapshotRecord = z.object({
  id: SnapshotId,
  sandbox: SandboxId,
  team: TeamId,
  node: NodeName,
  vmid: Vmid,
  name: z.string(),
  createdAt: z.number(),
  /** Absent: only by hand, or by newer ones. */
  expiresAt: z.number().optional(),
  /** The batch that it is there for. */
  branch: BatchId.optional(),
  /** Set where its clones can be linked ones that live on without it: the storage that they lie on. */
  storage: z.string().optional(),
  diskBytes: z.number().default(0),
  memoryMib: z.number().default(512),
});
export type SnapshotRecord = z.output<typeof SnapshotRecord>;
