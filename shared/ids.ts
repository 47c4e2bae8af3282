/** Branded ids. Each is checked once, at the door where it comes in. */
import { randomFillSync } from "node:crypto";
import { z } from "zod";

const random = (prefix: string) =>
  z.string().regex(new RegExp(`^${prefix}_[0-9a-z]{16}$`), `must look like ${prefix}_…`);

/** What a producer asked for. */
export const OperationId = random("op").brand<"OperationId">();
export type OperationId = z.infer<typeof OperationId>;

/** Many operations that were asked for together; its producer may choose it, so as to go on with it after a crash. */
export const BatchId = z
  .string()
  .regex(
    /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/,
    "must be 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first",
  )
  .brand<"BatchId">();
export type BatchId = z.infer<typeof BatchId>;

/** What we give out; never reused. */
export const SandboxId = random("sbx").brand<"SandboxId">();
export type SandboxId = z.infer<typeof SandboxId>;

/**
 * A name that the caller gives a sandbox: its host name, and unique among those that live. Short enough for a host name
 * with a port in front; never what a sandbox's own id becomes there.
 */
export const InstanceId = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$/,
    "must be 1 to 40 lower-case letters, digits or inner hyphens, a letter first",
  )
  .refine((id) => !/^sbx-[0-9a-z]{16}$/.test(id), { error: "must not look like a sandbox id" })
  .brand<"InstanceId">();
export type InstanceId = z.infer<typeof InstanceId>;

/** A PVE snapshot taken through the fleet; `provision` takes it as a template. */
export const SnapshotId = random("snap").brand<"SnapshotId">();
export type SnapshotId = z.infer<typeof SnapshotId>;

/** A container's number in PVE. PVE itself allows 100 to 999999999. */
export const Vmid = z.number().int().min(100).max(999_999_999).brand<"Vmid">();
export type Vmid = z.infer<typeof Vmid>;

/** A PVE node's name: a host name label. */
export const NodeName = z
  .string()
  .regex(/^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$/, "must be a node's name: letters, digits and inner hyphens")
  .brand<"NodeName">();
export type NodeName = z.infer<typeof NodeName>;

/** Whom a sandbox counts for. */
export const TeamId = z
  .string()
  .regex(
    /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/,
    "must be 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first",
  )
  .brand<"TeamId">();
export type TeamId = z.infer<typeof TeamId>;

/** Whose the members of pools are until they are claimed; no caller may ask for it. */
export const POOL_TEAM = TeamId.parse("fleet-pool");

/** Consumers that share events; a team's own are `team/name`. */
export const GroupName = z
  .string()
  .regex(
    /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/,
    "must be 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first",
  );

/** A named port of a sandbox; it becomes part of a host name. */
export const ServiceName = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$/,
    "must be 1 to 32 lower-case letters, digits or inner hyphens, a letter first",
  )
  .brand<"ServiceName">();
export type ServiceName = z.infer<typeof ServiceName>;

const ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz";

const pool = Buffer.alloc(4_096);
let used = pool.length;

/** Fetched many at a time: one request for randomness takes as long as a hundred bytes of it. */
function randomByte(): number {
  if (used === pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  return pool.readUInt8(used++);
}

/** 16 characters of 36: 82 bits, enough that no two meet. */
function randomId(): string {
  let id = "";
  while (id.length < 16) {
    const byte = randomByte();
    if (byte < 252) id += ALPHABET[byte % 36];
  }
  return id;
}

export const newOperationId = (): OperationId => OperationId.parse(`op_${randomId()}`);
export const newBatchId = (): BatchId => BatchId.parse(`batch_${randomId()}`);
export const newSandboxId = (): SandboxId => SandboxId.parse(`sbx_${randomId()}`);
export const newSnapshotId = (): SnapshotId => SnapshotId.parse(`snap_${randomId()}`);
export const newListenerId = (): string => randomId();
/** A run's fencing token: compared for equality only. */
export const newFence = (): string => randomId();
