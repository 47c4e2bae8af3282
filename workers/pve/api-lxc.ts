import type { z } from "zod";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import type { Call, Params } from "./http.ts";
import * as replies from "./replies-lxc.ts";
import { Nothing } from "./reply-fields.ts";
import { Upid } from "./upid.ts";
import { encodeSegment } from "./wire.ts";

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

/** A container from an OS template archive. Keys of its config besides, such as `net0`. */
export type CreateParams = Params & { vmid: Vmid; ostemplate: string; hostname: string; description: string };

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

/** `source` and `dest`: comma-separated networks of one address family. */
export interface FirewallRule {
  type: "in" | "out";
  action: string;
  enable: number;
  proto?: string;
  source?: string;
  dest?: string;
  comment: string;
}

/** Calls on one container. Those that start a task return it at once. */
export interface LxcApi {
  config(call: Call): Promise<replies.LxcConfig>;
  status(call: Call): Promise<replies.LxcStatus>;
  /** null while the container is stopped. */
  interfaces(call: Call): Promise<replies.LxcInterface[] | null>;
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
  /** A running one is shut down and started again (`restart`). */
  migrate(params: Params, call: Call): Promise<Upid>;
  snapshot(name: string, options: { description?: string }, call: Call): Promise<Upid>;
  snapshots(call: Call): Promise<replies.LxcSnapshot[]>;
  /** Config keys whose change waits for the next start. */
  pending(call: Call): Promise<string[]>;
  deleteSnapshot(name: string, options: { force?: boolean }, call: Call): Promise<Upid>;
  /** Stops the container and leaves it stopped unless `start`. */
  rollback(name: string, options: { start?: boolean }, call: Call): Promise<Upid>;
  /** Whether the container's storages can do it. */
  feature(feature: "snapshot" | "clone" | "copy", options: { snapname?: string }, call: Call): Promise<boolean>;
  firewallOptions(options: FirewallOptions, call: Call): Promise<void>;
  firewallRules(call: Call): Promise<replies.LxcFirewallRule[]>;
  /** Becomes the first. */
  addFirewallRule(rule: FirewallRule, call: Call): Promise<void>;
  /** Works in a task whose UPID PVE does not tell: poll the config for `template`. */
  template(call: Call): Promise<void>;
}

/** One request, its reply parsed. */
export type Send = <Schema extends z.ZodType>(
  request: { method: "GET" | "POST" | "PUT" | "DELETE"; path: string; node?: NodeName; params?: Params },
  schema: Schema,
  call: Call,
) => Promise<z.infer<Schema>>;

export function createLxcApi(send: Send, node: NodeName, vmid: Vmid): LxcApi {
  const base = `/nodes/${encodeSegment(node)}/lxc/${encodeSegment(vmid)}`;
  const get = <Schema extends z.ZodType>(path: string, schema: Schema, call: Call, params: Params = {}) =>
    send({ method: "GET", path: `${base}${path}`, node, params }, schema, call);
  const start = (method: "POST" | "PUT" | "DELETE", path: string, params: Params, call: Call) =>
    send({ method, path: `${base}${path}`, node, params }, Upid, call);
  const change = async (method: "POST" | "PUT", path: string, params: Params, call: Call): Promise<void> => {
    await send({ method, path: `${base}${path}`, node, params }, Nothing, call);
  };
  const snapshotPath = (name: string) => `/snapshot/${encodeSegment(name)}`;

  return {
    config: (call) => get("/config", replies.LxcConfig, call),
    status: (call) => get("/status/current", replies.LxcStatus, call),
    interfaces: (call) => get("/interfaces", replies.LxcInterfaces, call),
    clone: (params, call) => start("POST", "/clone", { ...params }, call),
    setConfig: (params, call) => change("PUT", "/config", params, call),
    start: (call) => start("POST", "/status/start", {}, call),
    stop: ({ overruleShutdown }, call) =>
      start("POST", "/status/stop", { "overrule-shutdown": overruleShutdown }, call),
    shutdown: ({ timeoutSec, forceStop }, call) =>
      start("POST", "/status/shutdown", { timeout: timeoutSec, forceStop }, call),
    reboot: ({ timeoutSec }, call) => start("POST", "/status/reboot", { timeout: timeoutSec }, call),
    destroy: ({ purge, force }, call) => start("DELETE", "", { purge, force }, call),
    resize: (disk, size, call) => start("PUT", "/resize", { disk, size }, call),
    migrate: (params, call) => start("POST", "/migrate", params, call),
    snapshot: (name, { description }, call) => start("POST", "/snapshot", { snapname: name, description }, call),
    snapshots: async (call) => {
      const entries = await get("/snapshot", replies.LxcSnapshot.array(), call);
      return entries.filter((entry) => entry.name !== "current");
    },
    pending: async (call) => {
      const entries = await get("/pending", replies.LxcPending.array(), call);
      return entries.filter((entry) => entry.pending !== undefined || entry.delete === true).map(({ key }) => key);
    },
    deleteSnapshot: (name, { force }, call) => start("DELETE", snapshotPath(name), { force }, call),
    rollback: (name, options, call) => start("POST", `${snapshotPath(name)}/rollback`, { start: options.start }, call),
    feature: async (feature, { snapname }, call) => {
      const reply = await get("/feature", replies.Feature, call, { feature, snapname });
      return reply.hasFeature;
    },
    firewallOptions: (options, call) => change("PUT", "/firewall/options", { ...options }, call),
    firewallRules: (call) => get("/firewall/rules", replies.LxcFirewallRule.array(), call),
    addFirewallRule: (rule, call) => change("POST", "/firewall/rules", { ...rule }, call),
    template: (call) => change("POST", "/template", {}, call),
  };
}
