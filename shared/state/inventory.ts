/** What the fleet knows of the cluster: written by one worker every few seconds, read by placement and the CLI. */
import { z } from "zod";
import { NodeName, SandboxId, TeamId, Vmid } from "../ids.ts";
import type { RedisConnection } from "../redis/connect.ts";
import type { Keys } from "./keys.ts";

export const Storage = z.object({
  name: z.string(),
  type: z.string(),
  shared: z.boolean(),
  /** Can hold container disks. */
  rootdir: z.boolean(),
  /** Can hold archives of containers. */
  backup: z.boolean().default(false),
  active: z.boolean(),
  totalBytes: z.number(),
  usedBytes: z.number(),
});
export type Storage = z.output<typeof Storage>;

export const NodeInventory = z.object({
  name: NodeName,
  online: z.boolean(),
  cores: z.number(),
  memoryBytes: z.number(),
  memoryUsedBytes: z.number(),
  cgroup: z.union([z.literal(1), z.literal(2)]),
  dnsSearch: z.string().optional(),
  storages: z.array(Storage),
  /** Configured memory and disk of containers and VMs that are not ours. */
  foreignMemoryBytes: z.number(),
});
export type NodeInventory = z.output<typeof NodeInventory>;

/** One PVE template that a sandbox can be cloned from. */
export const Replica = z.object({
  name: z.string(),
  tags: z.array(z.string()),
  vmid: Vmid,
  node: NodeName,
  /** The fleet made it, for one team; see `templates.ts`. */
  owner: z.object({ sandbox: SandboxId, team: TeamId }).optional(),
  /** The fleet made it as a replica of this one, as that was then; `team`: whose that is, where it is not everybody's. */
  copyOf: z.object({ vmid: Vmid, configHash: z.string(), team: TeamId.optional() }).optional(),
  storage: z.string(),
  /** Its storage is shared, so it can be cloned to every node that has the storage. */
  shared: z.boolean(),
  unprivileged: z.boolean(),
  /** It carries a hookscript, which hands in the exec token on PVE before 9.1. */
  hookscript: z.boolean(),
  diskBytes: z.number(),
  /** Another one means another template, whatever its name. */
  configHash: z.string().optional(),
  memoryMib: z.number(),
  locked: z.boolean(),
  /** false: its node can't be asked now, and this is what was last known of it; empty where nothing ever was. */
  online: z.boolean().default(true),
});
export type Replica = z.output<typeof Replica>;

/** A container that is no sandbox of ours and might be, as PVE's list shows it, which lags. */
const AdoptableContainer = z.object({
  node: NodeName,
  vmid: Vmid,
  name: z.string(),
  /** `running`, `stopped`, or `unknown`. */
  status: z.string(),
  lock: z.string().optional(),
});
export type AdoptableContainer = z.output<typeof AdoptableContainer>;

/** By what rules the worker that read it places sandboxes; for producers, who have no such settings of their own. */
export const PlacementLimits = z.object({
  slots: z.number(),
  memoryOvercommit: z.number(),
  diskOvercommit: z.number(),
  nodeSandboxes: z.number().optional(),
  storageFullPercent: z.number(),
  policy: z.enum(["spread", "pack"]),
  allowPrivileged: z.boolean(),
  /** PVE_NODE, PVE_STORAGE. */
  node: NodeName.optional(),
  storage: z.string().optional(),
  vmids: z.object({ first: z.number(), last: z.number() }),
  /** How many addresses PVE_IP_RANGE has. */
  addresses: z.number().optional(),
});
export type PlacementLimits = z.output<typeof PlacementLimits>;

export const Inventory = z.object({
  at: z.number(),
  limits: PlacementLimits.optional(),
  /** What the worker that read it makes URLs from: PVE_PUBLIC_DOMAIN and PVE_URL_PATTERN. */
  urls: z.object({ publicDomain: z.string().optional(), pattern: z.string() }).optional(),
  /** PVE's version, e.g. "8.4.1". */
  version: z.string(),
  nodes: z.array(NodeInventory),
  replicas: z.array(Replica),
  /** What `adopt` may take: FLEET_ADOPT_PREFIXES of the worker that read it, and containers with such names. */
  adoptable: z.object({ prefixes: z.array(z.string()), containers: z.array(AdoptableContainer) }).optional(),
});
export type Inventory = z.output<typeof Inventory>;

const Stored = z
  .string()
  .transform((text, context): unknown => {
    try {
      return JSON.parse(text);
    } catch {
      context.addIssue({ code: "custom", message: "must be JSON" });
      return z.NEVER;
    }
  })
  .pipe(Inventory);

/** Null before any worker has written it, and when another version wrote it: it is written anew every few seconds. */
export async function loadInventory(redis: RedisConnection, keys: Keys): Promise<Inventory | null> {
  const text = await redis.get(keys.inventory);
  return text === null ? null : (Stored.safeParse(text).data ?? null);
}

export async function saveInventory(redis: RedisConnection, keys: Keys, inventory: Inventory): Promise<void> {
  await redis.set(keys.inventory, JSON.stringify(inventory));
}

/** Whether this PVE takes a container's environment from its config (9.1 and later). */
export function hasConfigEnv(version: string): boolean {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major > 9 || (major === 9 && minor >= 1);
}
