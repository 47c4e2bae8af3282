/** What we read of PVE's replies about containers. */
import { z } from "zod";
import { configNum, flag, loose, num, text, vmid } from "./reply-fields.ts";

/** A line of `/nodes/{node}/lxc`, which is live. Bytes. */
export const LxcEntry = loose({
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
export type LxcEntry = z.infer<typeof LxcEntry>;

/** `status/current`, which is live. Bytes, seconds. */
export const LxcStatus = loose({
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
export type LxcStatus = z.infer<typeof LxcStatus>;

/** A container's config. `netN` and `mpN` beyond those named here are there under their own names. */
export const LxcConfig = loose({
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
export type LxcConfig = z.infer<typeof LxcConfig>;

export const LxcInterface = loose({
  name: text,
  hwaddr: text.optional(),
  "hardware-address": text.optional(),
  /** Since PVE 8.4: all addresses. `inet` and `inet6`, in CIDR form, hold one each. */
  "ip-addresses": z
    .array(loose({ "ip-address": text, prefix: num.optional(), "ip-address-type": text.optional() }))
    .optional(),
  inet: text.optional(),
  inet6: text.optional(),
});
export type LxcInterface = z.infer<typeof LxcInterface>;

/** null while the container is stopped. */
export const LxcInterfaces = z.array(LxcInterface).nullable();

/** One key of `/pending`: its value now and, where they differ, after the next start. */
export const LxcPending = loose({ key: text, pending: z.unknown().optional(), delete: flag.optional() });

/** `current` is PVE's "You are here!", not a snapshot. */
export const LxcSnapshot = loose({
  name: text,
  description: text.optional(),
  parent: text.optional(),
  /** Epoch seconds. */
  snaptime: num.optional(),
});
export type LxcSnapshot = z.infer<typeof LxcSnapshot>;

export const Feature = loose({ hasFeature: flag });

export const LxcFirewallRule = loose({
  type: z.enum(["in", "out"]).optional().catch(undefined),
  action: text.optional(),
  enable: num.optional(),
  source: text.optional(),
  dest: text.optional(),
  comment: text.optional(),
});
export type LxcFirewallRule = z.infer<typeof LxcFirewallRule>;
