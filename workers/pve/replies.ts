/** What we read of PVE's replies about the cluster, its nodes and their tasks. */
import { z } from "zod";
import { NodeName } from "../../shared/ids.ts";
import { flag, loose, num, text, vmid } from "./reply-fields.ts";

export const Version = loose({ version: text, release: text, repoid: text.optional() });
export type Version = z.infer<typeof Version>;

export const ClusterStatusEntry = loose({
  type: z.string(),
  name: text,
  /** Of the cluster entry; a single node outside a cluster has none. */
  quorate: flag.optional(),
  /** Of node entries. */
  online: flag.optional(),
  local: flag.optional(),
  nodeid: num.optional(),
  ip: text.optional(),
});
export type ClusterStatusEntry = z.infer<typeof ClusterStatusEntry>;

/** Lags 7 to 10 s; a reused VMID shows for a while its predecessor's name as running. */
export const ClusterResource = loose({
  id: text,
  type: z.string(),
  node: NodeName.optional(),
  status: text.optional(),
  vmid: vmid.optional(),
  name: text.optional(),
  pool: text.optional(),
  template: flag.optional(),
  tags: text.optional(),
  lock: text.optional(),
  storage: text.optional(),
  /** A zone of the software-defined network. */
  sdn: text.optional(),
  plugintype: text.optional(),
  content: text.optional(),
  shared: flag.optional(),
  cpu: num.optional(),
  maxcpu: num.optional(),
  mem: num.optional(),
  maxmem: num.optional(),
  disk: num.optional(),
  maxdisk: num.optional(),
  uptime: num.optional(),
});
export type ClusterResource = z.infer<typeof ClusterResource>;

/** Of the datacenter. */
export const FirewallState = loose({ enable: num.optional() });
export type FirewallState = z.infer<typeof FirewallState>;

export const NodeDns = loose({
  search: text.optional(),
  dns1: text.optional(),
  dns2: text.optional(),
  dns3: text.optional(),
});
export type NodeDns = z.infer<typeof NodeDns>;

/** `time`: seconds since 1970, UTC. */
export const NodeTime = loose({ time: num });
export type NodeTime = z.infer<typeof NodeTime>;

export const NodeStatus = loose({
  cpu: num.optional(),
  cpuinfo: loose({ cpus: num }).optional(),
  /** Bytes. */
  memory: loose({ total: num, used: num, free: num.optional() }).optional(),
  rootfs: loose({ total: num, used: num, avail: num.optional() }).optional(),
  loadavg: z.array(num).optional(),
  uptime: num.optional(),
  pveversion: text.optional(),
});
export type NodeStatus = z.infer<typeof NodeStatus>;

/** A storage as one node sees it. Bytes. */
export const NodeStorage = loose({
  storage: text,
  type: text,
  content: text.optional(),
  active: flag.optional(),
  enabled: flag.optional(),
  shared: flag.optional(),
  total: num.optional(),
  used: num.optional(),
  avail: num.optional(),
});
export type NodeStorage = z.infer<typeof NodeStorage>;

/** A storage as the datacenter's configuration has it. */
export const StorageConfig = loose({
  storage: text,
  type: text,
  content: text.optional(),
  nodes: text.optional(),
  /** Need not be there for types that are shared by nature, such as rbd. */
  shared: flag.optional(),
  disable: flag.optional(),
});
export type StorageConfig = z.infer<typeof StorageConfig>;

/** `notes`: the first line. */
export const Volume = loose({ volid: text, notes: text.optional() });
export type Volume = z.infer<typeof Volume>;

export const Pool = loose({ poolid: text, comment: text.optional() });
export type Pool = z.infer<typeof Pool>;

/** ACL path → privilege → whether it also holds below. */
export const Permissions = z.record(z.string(), z.record(z.string(), flag));
export type Permissions = z.infer<typeof Permissions>;

export const TaskStatus = loose({
  upid: text.optional(),
  status: z.enum(["running", "stopped"]),
  exitstatus: text.optional(),
  type: text.optional(),
  id: text.optional(),
  node: text.optional(),
  /** Epoch seconds. */
  starttime: num.optional(),
});
export type TaskStatus = z.infer<typeof TaskStatus>;

export const TaskEntry = loose({
  upid: text,
  type: text,
  id: text.optional(),
  node: text,
  user: text,
  /** Epoch seconds. */
  starttime: num,
  endtime: num.optional(),
  /** RUNNING, or the exit status. */
  status: text.optional(),
});
export type TaskEntry = z.infer<typeof TaskEntry>;

/** PVE answers an unknown UPID with one object in place of the list. */
export const TaskLog = z.union([
  z.array(loose({ n: num, t: text })),
  loose({ n: num, t: text }).transform((line) => [line]),
]);
