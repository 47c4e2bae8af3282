/**
 * What we read of PVE's replies. Loose objects: PVE adds fields with every release, and we pass on what we name.
 * Perl decides at run time whether a number is written as 5 or as "5", so both are taken everywhere.
 */
import { z } from "zod";
import { NodeName, Vmid } from "../../shared/ids.ts";

const num = z.coerce.number();
/** 1, "1", 0, "0", "", null. */
const flag = z
  .union([z.boolean(), z.number(), z.string(), z.null()])
  .transform((value) => value !== null && value !== "" && value !== "0" && value !== 0 && value !== false);
/** A number in a config, where PVE keeps whatever a client once wrote (`memory: " "` was seen); garbage is undefined. */
const configNum = z.union([z.number(), z.string(), z.null()]).transform((value) => {
  const parsed = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  return typeof parsed === "number" && Number.isFinite(parsed) ? parsed : undefined;
});
const text = z.coerce.string();
const vmid = z.coerce.number().pipe(Vmid);

export const Version = z.looseObject({ version: text, release: text, repoid: text.optional() });

export const ClusterStatusEntry = z.looseObject({
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

/** Lags 7 to 10 s; a reused VMID shows for a while its predecessor's name as running. */
export const ClusterResource = z.looseObject({
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

export const NodeDns = z.looseObject({
  search: text.optional(),
  dns1: text.optional(),
  dns2: text.optional(),
  dns3: text.optional(),
});

export const NodeStatus = z.looseObject({
  cpu: num.optional(),
  cpuinfo: z.looseObject({ cpus: num }).optional(),
  /** Bytes. */
  memory: z.looseObject({ total: num, used: num, free: num.optional() }).optional(),
  rootfs: z.looseObject({ total: num, used: num, avail: num.optional() }).optional(),
  loadavg: z.array(num).optional(),
  uptime: num.optional(),
  pveversion: text.optional(),
});

/** A storage as one node sees it. Bytes. */
export const NodeStorage = z.looseObject({
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

/** A storage as the datacenter's configuration has it. */
export const StorageConfig = z.looseObject({
  storage: text,
  type: text,
  content: text.optional(),
  nodes: text.optional(),
  shared: flag.optional(),
  disable: flag.optional(),
});

export const Pool = z.looseObject({ poolid: text, comment: text.optional() });

/** ACL path → privilege → whether it also holds below. */
export const Permissions = z.record(z.string(), z.record(z.string(), flag));

/** A line of `/nodes/{node}/lxc`, which is live. Bytes. */
export const LxcEntry = z.looseObject({
  vmid,
  status: text,
  name: text.optional(),
  tags: text.optional(),
  template: flag.optional(),
  lock: text.optional(),
  uptime: num.optional(),
  cpu: num.optional(),
  cpus: num.optional(),
  mem: num.optional(),
  maxmem: num.optional(),
  disk: num.optional(),
  maxdisk: num.optional(),
});

/** `status/current`, which is live. Bytes, seconds. */
export const LxcStatus = z.looseObject({
  status: z.enum(["running", "stopped"]),
  vmid: vmid.optional(),
  name: text.optional(),
  lock: text.optional(),
  template: flag.optional(),
  tags: text.optional(),
  uptime: num.optional(),
  pid: num.optional(),
  cpu: num.optional(),
  cpus: num.optional(),
  mem: num.optional(),
  maxmem: num.optional(),
  disk: num.optional(),
  maxdisk: num.optional(),
  netin: num.optional(),
  netout: num.optional(),
});

/** A container's config. `netN` and `mpN` beyond those named here are there under their own names. */
export const LxcConfig = z.looseObject({
  digest: text,
  hostname: text.optional(),
  description: text.optional(),
  lock: text.optional(),
  tags: text.optional(),
  template: flag.optional(),
  unprivileged: flag.optional(),
  protection: flag.optional(),
  onboot: flag.optional(),
  arch: text.optional(),
  ostype: text.optional(),
  /** MiB */
  memory: configNum.optional(),
  /** MiB */
  swap: configNum.optional(),
  cores: configNum.optional(),
  cpulimit: configNum.optional(),
  cpuunits: configNum.optional(),
  rootfs: text.optional(),
  net0: text.optional(),
  features: text.optional(),
  startup: text.optional(),
  hookscript: text.optional(),
  nameserver: text.optional(),
  searchdomain: text.optional(),
  /** Since PVE 9.1. */
  env: text.optional(),
});

export const LxcInterface = z.looseObject({
  name: text,
  hwaddr: text.optional(),
  "hardware-address": text.optional(),
  /** Since PVE 8.4: all addresses. `inet` and `inet6`, in CIDR form, hold one each. */
  "ip-addresses": z
    .array(z.looseObject({ "ip-address": text, prefix: num.optional(), "ip-address-type": text.optional() }))
    .nullish(),
  inet: text.optional(),
  inet6: text.optional(),
});

/** `current` is PVE's "You are here!", not a snapshot. */
export const LxcSnapshot = z.looseObject({
  name: text,
  description: text.optional(),
  parent: text.optional(),
  /** Epoch seconds. */
  snaptime: num.optional(),
});

export const Feature = z.looseObject({ hasFeature: flag });

export const TaskStatus = z.looseObject({
  upid: text.optional(),
  status: z.enum(["running", "stopped"]),
  exitstatus: text.optional(),
  type: text.optional(),
  id: text.optional(),
  node: text.optional(),
  /** Epoch seconds. */
  starttime: num.optional(),
});

export const TaskEntry = z.looseObject({
  upid: text,
  type: text,
  id: text.nullish(),
  node: text,
  user: text,
  /** Epoch seconds. */
  starttime: num,
  endtime: num.nullish(),
  /** RUNNING, or the exit status. */
  status: text.nullish(),
});

/** PVE answers an unknown UPID with one object in place of the list. */
export const TaskLog = z.union([
  z.array(z.looseObject({ n: num, t: z.coerce.string() })),
  z.looseObject({ n: num, t: z.coerce.string() }).transform((line) => [line]),
]);
