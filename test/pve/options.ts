/** What a test may decide about the stand-in; everything has a default. Durations in ms unless the name says otherwise. */
export interface PveOptions {
  /** A number gives pve1..pveN, each with `local`, `local-lvm` and the shared `ceph`. */
  nodes?: number | NodeSpec[];
  version?: PveVersion;
  /** Where the API listens; 127.0.0.1 by default. */
  host?: string;
  /** API port; 0 takes any free one. */
  port?: number;
  /** Port of the plain HTTP control API on 127.0.0.1; 0 takes any free one. */
  controlPort?: number;
  timings?: Partial<Timings>;
  /** Seeds jitter, MAC addresses and made-up ids. */
  seed?: number;
  templates?: TemplateSpec[];
  /** First loopback address that a container gets, e.g. "127.70.0.1"; derived from the API port by default. */
  guestAddressBase?: string;
  /** Where the containers' root folders live; a private temporary folder by default, removed at close. */
  dataDir?: string;
}

export type PveVersion = "8.4" | "9.2";

export interface NodeSpec {
  name: string;
  cores?: number;
  memoryMib?: number;
  storages?: StorageSpec[];
  online?: boolean;
  /** Search domain that `/nodes/{node}/dns` tells, "lan" by default; "" for none. */
  dnsSearch?: string;
  /** Heavy tasks that run at full speed at once; `timings.nodeParallel` by default. */
  parallel?: number;
}

export type StorageType = "dir" | "lvmthin" | "zfspool" | "rbd" | "btrfs";

export interface StorageSpec {
  name: string;
  type: StorageType;
  /** One store behind all nodes that name it. */
  shared?: boolean;
  sizeGib?: number;
  /** What it is for, as PVE has it ("backup,vztmpl"); all that its type can do by default. */
  content?: string;
  /** `prune-backups keep-last=N`, of each guest; all are kept when absent. */
  keepBackups?: number;
  /** Taken by something else than containers. */
  usedGib?: number;
}

/** What the guest inside is like; clones inherit it from their template. */
export interface GuestTraits {
  /** false: execd never opens. */
  execd: boolean;
  /** false: an execd from before it had `/files`. */
  files: boolean;
  /** After the start task's end, until the address and execd appear. */
  bootMs: number;
  /** The guest's init ignores a shutdown. */
  ignoresShutdown: boolean;
  /** The start ends OK and the container is stopped again at once. */
  exitsAfterStart: boolean;
  /** The start task fails with this text. */
  startError?: string;
}

/** One PVE template; several replicas of one name are several of these. */
export interface TemplateSpec {
  name?: string;
  /** First node by default. */
  node?: string;
  /** Next free one from 9001 by default. */
  vmid?: number;
  /** `local-lvm` by default. */
  storage?: string;
  diskGib?: number;
  privileged?: boolean;
  /** A volume id, or false for none. */
  hookscript?: string | false;
  protection?: boolean;
  tags?: string;
  /** More lines of its config, or others than the defaults. */
  config?: Record<string, string | number>;
  guest?: Partial<GuestTraits>;
  /** false makes an ordinary stopped container instead. */
  template?: boolean;
}

/** Milliseconds, except where a comment says otherwise. */
export interface Timings {
  cloneLinked: number;
  cloneFull: number;
  backup: number;
  restore: number;
  create: number;
  start: number;
  stop: number;
  shutdown: number;
  reboot: number;
  snapshot: number;
  deleteSnapshot: number;
  rollback: number;
  destroy: number;
  template: number;
  resize: number;
  /** Until the guest's address and execd appear after a start, where its template does not say. */
  boot: number;
  /** Share of a task's duration that is random: 0.05 is ±5 %. */
  jitter: number;
  /** Heavy tasks that run at full speed at once on a node; beyond it they share (see node-load.ts). */
  nodeParallel: number;
  /** Factor on the latency of API replies; 0 answers at once. */
  apiScale: number;
  /** Factor on the duration of tasks and boots. */
  timeScale: number;
  authDelay: number;
  /** How long a change waits for the container's file lock. */
  lockTimeout: number;
  /** How long a minute of `lockwait` is to vzdump. */
  lockMinute: number;
  /** Until "595 No route to host". */
  unreachableDelay: number;
  /** Until "596 Connection timed out". */
  hungTimeout: number;
  /** How long an aborted shutdown takes to go away. */
  taskAbort: number;
  /** How far cluster/resources lags behind. */
  resourcesLag: number;
}

/** Medians of the recordings (small containers, two cores). */
export const TIMINGS: Timings = {
  cloneLinked: 300,
  cloneFull: 1500,
  // Of these nothing was recorded: a full clone, and its compression.
  backup: 3000,
  restore: 3000,
  create: 2000,
  start: 1500,
  stop: 1300,
  shutdown: 1400,
  reboot: 2800,
  snapshot: 120,
  deleteSnapshot: 70,
  rollback: 1300,
  destroy: 100,
  template: 300,
  resize: 300,
  boot: 0,
  jitter: 0.05,
  nodeParallel: 4,
  apiScale: 1,
  timeScale: 1,
  authDelay: 3000,
  lockTimeout: 10_000,
  lockMinute: 60_000,
  unreachableDelay: 3000,
  hungTimeout: 30_000,
  taskAbort: 5000,
  resourcesLag: 8000,
};
