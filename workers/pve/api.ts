import type { z } from "zod";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { Call, Params, PveHttp } from "./http.ts";
import type * as replies from "./replies.ts";
import type { Upid } from "./upid.ts";

export type { Call, Params } from "./http.ts";

type Reply<Name extends keyof typeof replies> = z.infer<(typeof replies)[Name]>;
export type Version = Reply<"Version">;
export type ClusterStatusEntry = Reply<"ClusterStatusEntry">;
export type ClusterResource = Reply<"ClusterResource">;
export type NodeDns = Reply<"NodeDns">;
export type NodeStatus = Reply<"NodeStatus">;
export type NodeStorage = Reply<"NodeStorage">;
export type StorageConfig = Reply<"StorageConfig">;
export type Pool = Reply<"Pool">;
export type Permissions = Reply<"Permissions">;
export type LxcEntry = Reply<"LxcEntry">;
export type LxcStatus = Reply<"LxcStatus">;
export type LxcConfig = Reply<"LxcConfig">;
export type LxcInterface = Reply<"LxcInterface">;
export type LxcSnapshot = Reply<"LxcSnapshot">;
export type TaskStatus = Reply<"TaskStatus">;
export type TaskEntry = Reply<"TaskEntry">;

export interface CloneParams {
  newid: Vmid;
  hostname?: string;
  /** Written before the task starts, as the hostname is. */
  description?: string;
  pool?: string;
  /** A full copy; only with it may `storage` be given. */
  full?: boolean;
  storage?: string;
  snapname?: string;
  /** Another node; only from shared storage. */
  target?: NodeName;
  /** KiB/s */
  bwlimit?: number;
}

export interface FirewallOptions {
  enable?: boolean;
  ipfilter?: boolean;
  macfilter?: boolean;
  dhcp?: boolean;
  ndp?: boolean;
  radv?: boolean;
  policy_in?: "ACCEPT" | "DROP" | "REJECT";
  policy_out?: "ACCEPT" | "DROP" | "REJECT";
}

export interface TaskFilter {
  /** Without it PVE lists archived tasks, the running ones left out. */
  source?: "active" | "archive" | "all";
  vmid?: Vmid;
  /** Epoch seconds. */
  since?: number;
  until?: number;
  /** 50 by default. */
  limit?: number;
  typefilter?: string;
  errors?: boolean;
}

/** Calls on one container. Those that start a task return it at once. */
export interface LxcApi {
  config(call: Call): Promise<LxcConfig>;
  status(call: Call): Promise<LxcStatus>;
  /** null while the container is stopped. */
  interfaces(call: Call): Promise<LxcInterface[] | null>;
  clone(params: CloneParams, call: Call): Promise<Upid>;
  /** `delete` takes a comma-separated list of keys, `digest` refuses when the config has changed since. */
  setConfig(params: Params, call: Call): Promise<void>;
  start(call: Call): Promise<Upid>;
  stop(options: { overruleShutdown?: boolean }, call: Call): Promise<Upid>;
  shutdown(options: { timeoutSec?: number; forceStop?: boolean }, call: Call): Promise<Upid>;
  reboot(options: { timeoutSec?: number }, call: Call): Promise<Upid>;
  destroy(options: { purge?: boolean; force?: boolean }, call: Call): Promise<Upid>;
  /** `size` is absolute ("8G") or an increase ("+1G"). */
  resize(disk: string, size: string, call: Call): Promise<Upid>;
  snapshot(name: string, options: { description?: string }, call: Call): Promise<Upid>;
  snapshots(call: Call): Promise<LxcSnapshot[]>;
  deleteSnapshot(name: string, options: { force?: boolean }, call: Call): Promise<Upid>;
  /** Stops the container and leaves it stopped unless `start`. */
  rollback(name: string, options: { start?: boolean }, call: Call): Promise<Upid>;
  /** Whether the container's storages can do it. */
  feature(feature: "snapshot" | "clone" | "copy", options: { snapname?: string }, call: Call): Promise<boolean>;
  firewallOptions(options: FirewallOptions, call: Call): Promise<void>;
  /** Works in a task whose UPID PVE does not tell: poll the config for `template`. */
  template(call: Call): Promise<void>;
}

export interface TasksApi {
  status(upid: Upid, call: Call): Promise<TaskStatus>;
  list(node: NodeName, filter: TaskFilter, call: Call): Promise<TaskEntry[]>;
  /** Interrupts a task; PVE answers when it is gone, up to 5 s later. */
  stop(upid: Upid, call: Call): Promise<void>;
  /** The lines, 50 by default. */
  log(upid: Upid, options: { limit?: number; start?: number }, call: Call): Promise<string[]>;
}

/** Typed calls to PVE. Each throws FleetError, or the reason of the signal that ended it. */
export interface PveApi {
  version(call: Call): Promise<Version>;
  clusterStatus(call: Call): Promise<ClusterStatusEntry[]>;
  /** Lags 7 to 10 s; `list` and `status` are live. */
  clusterResources(filter: { type?: "vm" | "storage" | "node" }, call: Call): Promise<ClusterResource[]>;
  nodeDns(node: NodeName, call: Call): Promise<NodeDns>;
  nodeStatus(node: NodeName, call: Call): Promise<NodeStatus>;
  storages(node: NodeName, call: Call): Promise<NodeStorage[]>;
  storageConfig(call: Call): Promise<StorageConfig[]>;
  pools(call: Call): Promise<Pool[]>;
  /** Of the token itself. */
  permissions(call: Call): Promise<Permissions>;
  /** All containers of a node that the token may see. */
  list(node: NodeName, call: Call): Promise<LxcEntry[]>;
  lxc(node: NodeName, vmid: Vmid): LxcApi;
  readonly tasks: TasksApi;
}

export function createPveApi(http: PveHttp): PveApi {
  throw new Error(`not there yet: ${typeof http}`);
}
