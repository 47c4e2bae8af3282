import { z } from "zod";
import { InstanceId, NodeName, OperationId, SandboxId, SnapshotId, TeamId, Vmid } from "../ids.ts";
import { NodeLabel } from "../state/nodes.ts";
import { defineJob } from "./define-job.ts";
import {
  Command,
  Env,
  ExposedService,
  IdleAction,
  IdleSeconds,
  Metadata,
  MountPoint,
  Network,
  resources,
  Service,
  StorageName,
  TtlAction,
  TtlSeconds,
} from "./fields.ts";

/** A template's name, name and version (NAME:VERSION) or tag in PVE. A number is a VMID, `snap_…` and `sbx_…` a snapshot and a template of the fleet's own. */
const TemplateName = z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}(:[a-z0-9_.-]{1,32})?$/);
export const TemplateRef = z.union([Vmid, SnapshotId, SandboxId, TemplateName], {
  error: "must be a template's name or tag, a VMID as a number (100 or more), or the id of a snapshot or template",
});

export const ProvisionInput = z
  .strictObject({
    template: TemplateRef,
    /** Linked shares the template's disk; `linked_or_full` falls back where the storage can't. */
    clone: z.enum(["linked", "full", "linked_or_full"]).default("linked"),
    /** A PVE snapshot of the source to clone from (always a full clone). */
    sourceSnapshot: z
      .string()
      .regex(/^[a-zA-Z][a-zA-Z0-9_-]{1,39}$/, "must be a snapshot's name")
      .optional(),
    node: NodeName.optional(),
    /** Only nodes that carry all of these; operators give them, see `fleet node set`. */
    nodeLabels: z.array(NodeLabel).max(8).optional(),
    /**
     * Keeps it on another node than the others of its batch or, where one is named, of its team's group. `prefer` does what
     * is possible; `require` waits for a node without any.
     */
    antiAffinity: z
      .strictObject({
        group: z
          .string()
          .regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/, "must be 1 to 64 letters, digits, '_', '.' or '-'")
          .optional(),
        mode: z.enum(["prefer", "require"]).default("prefer"),
      })
      .optional(),
    /** Target storage; full clones only. */
    storage: StorageName.optional(),
    pool: z
      .string()
      .regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/, "must be a pool's name")
      .optional(),
    /**
     * A name to find it by, and its host name. While the sandbox lives, the same name with the same input of the same
     * team gives that sandbox; else `idempotency_conflict`.
     */
    instanceId: InstanceId.optional(),
    /** May hold `{vmid}` and `{id}`. */
    hostname: z
      .string()
      .max(80)
      .regex(/^([a-z0-9-]|\{vmid\}|\{id\})+$/, "must be lower-case letters, digits, hyphens, {vmid} or {id}")
      .refine((name) => !name.startsWith("-") && !name.endsWith("-"), { error: "must not begin or end with a hyphen" })
      .optional(),
    ...resources,
    network: Network.optional(),
    mountPoints: z
      .array(MountPoint)
      .max(16)
      .refine((all) => new Set(all.map((one) => one.path)).size === all.length, { error: "paths must differ" })
      .default([]),
    startup: z
      .strictObject({
        order: z.number().int().min(0).max(65_535).optional(),
        upDelaySec: z.number().int().min(0).max(86_400).optional(),
        downDelaySec: z.number().int().min(0).max(86_400).optional(),
      })
      .optional(),
    features: z.strictObject({ nesting: z.boolean().optional() }).optional(),
    /** I/O limit of a full clone in KiB/s. */
    bwlimitKib: z.number().int().min(0).optional(),
    description: z
      .string()
      .max(2_048)
      .refine((text) => !text.includes("\0"), { error: "must not hold a NUL byte" })
      .optional(),
    tags: z
      .array(
        z
          .string()
          .regex(/^[a-z0-9_][a-z0-9_+.-]{0,62}$/, "must be 1 to 63 lower-case letters, digits, '_', '+', '.' or '-'"),
      )
      .max(16)
      .default([]),
    /** Whom the sandbox counts for; a client that was made for one team may only name that one. */
    team: TeamId.optional(),
    metadata: Metadata.default({}),
    /** For `setup` and every later exec; sealed. */
    env: Env.optional(),
    /** Commands that run once, in order, before the sandbox is handed out; the first to fail fails the provision. */
    setup: z.array(Command).max(32).default([]),
    services: z
      .array(Service)
      .max(32)
      .refine((all) => new Set(all.map((one) => one.name)).size === all.length, { error: "names must differ" })
      .default([]),
    /** `address`: for templates without cmux-execd; such a sandbox can't exec or run `setup`. */
    waitFor: z.enum(["execd", "address"]).default("execd"),
    /** Seconds from `running` until `ttlAction`, and again from each start after its stop or pause; as workers are set when absent. */
    ttlSeconds: TtlSeconds.optional(),
    ttlAction: TtlAction.default("destroy"),
    /** `ttlSeconds` count from the last request through the gate, command, transfer or start; never less than they were. */
    ttlExtendOnUse: z.boolean().default(false),
    /**
     * After so long without a request through the gate, a command or a transfer `idleAction` follows; null: never; as workers
     * are set when absent.
     */
    idleSeconds: IdleSeconds.nullable().optional(),
    idleAction: IdleAction.default("pause"),
    /** A request to one of its services wakes it when it is paused or stopped. */
    wakeOnHttp: z.boolean().default(false),
    /** Batch work waits behind interactive work. */
    priority: z.enum(["interactive", "batch"]).default("interactive"),
  })
  .refine((input) => !(input.storage !== undefined && input.clone === "linked" && input.sourceSnapshot === undefined), {
    path: ["storage"],
    error: 'a linked clone stays on its template\'s storage; ask for clone: "full" to choose one',
  })
  .refine((input) => input.bwlimitKib === undefined || input.clone !== "linked" || input.sourceSnapshot !== undefined, {
    path: ["bwlimitKib"],
    error: 'a linked clone copies nothing that could be limited; ask for clone: "full"',
  })
  .refine((input) => input.waitFor === "execd" || input.setup.length === 0, {
    path: ["setup"],
    error: 'setup commands need the exec daemon; leave waitFor at "execd"',
  })
  .refine(
    (input) =>
      !(
        input.network?.gateway &&
        (input.network.ip === undefined || input.network.ip === "dhcp" || input.network.ip === "manual")
      ),
    {
      path: ["network", "gateway"],
      error: "a gateway needs a fixed address in network.ip (dhcp brings its own)",
    },
  );
export type ProvisionInput = z.infer<typeof ProvisionInput>;

/**
 * Settings that PVE keeps for root@pam itself: an API token can never set them.
 * Each maps to the path in the input that people try.
 */
const ROOT_ONLY: readonly { path: readonly string[]; allowed?: (value: unknown) => boolean }[] = [
  { path: ["hookscript"] },
  { path: ["lxc"] },
  { path: ["skiplock"] },
  { path: ["devices"] },
  { path: ["unprivileged"], allowed: (value) => value === true },
  { path: ["features", "keyctl"] },
  { path: ["features", "fuse"] },
  { path: ["features", "mount"] },
  { path: ["features", "mknod"] },
];

/**
 * What of a raw provision input PVE would refuse to any token, as field paths.
 * Source: PVE 8.4, "changing feature flags (except nesting) is only allowed for root@pam" and its kin.
 */
export function findRootOnly(raw: unknown): string[] {
  const found = ROOT_ONLY.filter(({ path, allowed }) => {
    const value = path.reduce<unknown>((at, key) => (isObject(at) ? at[key] : undefined), raw);
    return value !== undefined && !allowed?.(value);
  }).map(({ path }) => path.join("."));
  const mounts = isObject(raw) && Array.isArray(raw["mountPoints"]) ? raw["mountPoints"] : [];
  mounts.forEach((mount: unknown, index) => {
    const source = isObject(mount) ? (mount["source"] ?? mount["volume"] ?? mount["storage"]) : undefined;
    if (typeof source === "string" && source.startsWith("/")) found.push(`mountPoints.${index}`);
  });
  return found;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export const provision = defineJob({
  summary: "Clone a template into a new sandbox, start it, wait until it answers, expose its services",
  input: ProvisionInput,
  output: z.object({
    sandboxId: SandboxId,
    operationId: OperationId,
    node: NodeName,
    vmid: Vmid,
    hostname: z.string(),
    address: z.string(),
    services: z.array(ExposedService),
    /** Whether its container was made before it was asked for: see `fleet.pools`. */
    warm: z.boolean().default(false),
    /** ms per step, from PVE's and our own clock. */
    timings: z.record(z.string(), z.number()),
  }),
  queue: "place",
  quotas: "provisions",
  makesSandbox: true,
  attempts: 8,
  timeoutMs: 600_000,
  secret: ["env"],
});
