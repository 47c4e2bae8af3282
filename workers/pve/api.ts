import { setImmediate as pause } from "node:timers/promises";
import { z } from "zod";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName, Vmid } from "../../shared/ids.ts";
import { type CreateParams, createLxcApi, type LxcApi, type Send } from "./api-lxc.ts";
import { placeOf } from "./errors.ts";
import type { Call, Params, PveHttp } from "./http.ts";
import * as replies from "./replies.ts";
import { LxcEntry } from "./replies-lxc.ts";
import { Nothing } from "./reply-fields.ts";
import { parseUpid, Upid } from "./upid.ts";
import { encodeSegment } from "./wire.ts";

export type { CloneParams, LxcApi } from "./api-lxc.ts";
export type { Call, Params } from "./http.ts";
export type { ClusterResource } from "./replies.ts";
export type { LxcConfig, LxcEntry, LxcInterface } from "./replies-lxc.ts";

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

export interface TasksApi {
  status(upid: Upid, call: Call): Promise<replies.TaskStatus>;
  list(node: NodeName, filter: TaskFilter, call: Call): Promise<replies.TaskEntry[]>;
  /** Interrupts a task; PVE answers when it is gone, up to 5 s later. */
  stop(upid: Upid, call: Call): Promise<void>;
  /** The lines, 50 by default. */
  log(upid: Upid, options: { limit?: number; start?: number }, call: Call): Promise<string[]>;
}

/** Typed calls to PVE. Each throws FleetError, or the reason of the signal that ended it. */
export interface PveApi {
  version(call: Call): Promise<replies.Version>;
  clusterStatus(call: Call): Promise<replies.ClusterStatusEntry[]>;
  /** Lags 7 to 10 s; `list` and `status` are live. */
  clusterResources(
    filter: { type?: "vm" | "storage" | "node" | "sdn" },
    call: Call,
  ): Promise<replies.ClusterResource[]>;
  /** Of the datacenter: while it is off, no container's firewall filters anything. */
  firewall(call: Call): Promise<replies.FirewallState>;
  nodeDns(node: NodeName, call: Call): Promise<replies.NodeDns>;
  nodeTime(node: NodeName, call: Call): Promise<replies.NodeTime>;
  nodeStatus(node: NodeName, call: Call): Promise<replies.NodeStatus>;
  storages(node: NodeName, call: Call): Promise<replies.NodeStorage[]>;
  storageConfig(call: Call): Promise<replies.StorageConfig[]>;
  pools(call: Call): Promise<replies.Pool[]>;
  /** Refused for a guest that is in another pool. */
  changePool(pool: string, change: { vmid: Vmid; remove?: boolean }, call: Call): Promise<void>;
  /** Of the token itself, on one path. */
  permissions(path: string, call: Call): Promise<ReadonlySet<string>>;
  /** Whether no guest of the cluster has this VMID; answers without any right on it, and reserves nothing. */
  isFree(vmid: Vmid, call: Call): Promise<boolean>;
  /** All containers of a node that the token may see. */
  list(node: NodeName, call: Call): Promise<LxcEntry[]>;
  lxc(node: NodeName, vmid: Vmid): LxcApi;
  /** Until its task ends the config holds `lock: create` alone, unlike a clone's. */
  createLxc(node: NodeName, params: CreateParams, call: Call): Promise<Upid>;
  /** Ids of what a storage holds, such as `local:vztmpl/debian-12.tar.zst`. */
  volumes(node: NodeName, storage: string, content: "vztmpl" | "backup", call: Call): Promise<string[]>;
  /** Saves a container to a storage, protected; its notes are what tells whose the archive is. No other archive is pruned for it. */
  backup(node: NodeName, params: { vmid: Vmid; storage: string; notes: string }, call: Call): Promise<Upid>;
  /** Archives of a container. */
  backups(node: NodeName, storage: string, vmid: Vmid, call: Call): Promise<replies.Volume[]>;
  unprotect(node: NodeName, storage: string, volid: string, call: Call): Promise<void>;
  /** Waits some seconds for its end; else returns its task. */
  deleteVolume(node: NodeName, storage: string, volid: string, call: Call): Promise<Upid | null>;
  readonly tasks: TasksApi;
}

export function createPveApi(http: PveHttp): PveApi {
  const send: Send = async (request, schema, call) => {
    const data = await http.request({ ...request, ...call });
    const parsed = await parse(schema, data);
    if (parsed.success) return parsed.data;
    throw unexpectedData(request, parsed.error);
  };
  const get = <Schema extends z.ZodType>(path: string, schema: Schema, call: Call, params: Params = {}) =>
    send({ method: "GET", path, params }, schema, call);
  const getOf = <Schema extends z.ZodType>(node: NodeName, path: string, schema: Schema, call: Call) =>
    send({ method: "GET", path: `${nodePath(node)}${path}`, node }, schema, call);

  return {
    version: (call) => get("/version", replies.Version, call),
    clusterStatus: (call) => get("/cluster/status", replies.ClusterStatusEntry.array(), call),
    clusterResources: ({ type }, call) => get("/cluster/resources", replies.ClusterResource.array(), call, { type }),
    firewall: (call) => get("/cluster/firewall/options", replies.FirewallState, call),
    nodeDns: (node, call) => getOf(node, "/dns", replies.NodeDns, call),
    nodeTime: (node, call) => getOf(node, "/time", replies.NodeTime, call),
    nodeStatus: (node, call) => getOf(node, "/status", replies.NodeStatus, call),
    storages: (node, call) => getOf(node, "/storage", replies.NodeStorage.array(), call),
    storageConfig: (call) => get("/storage", replies.StorageConfig.array(), call),
    pools: (call) => get("/pools", replies.Pool.array(), call),
    changePool: async (pool, { vmid, remove }, call) => {
      const params = { vms: String(vmid), delete: remove };
      await send({ method: "PUT", path: `/pools/${encodeSegment(pool)}`, params }, Nothing, call);
    },
    permissions: async (path, call) => {
      const permissions = await get("/access/permissions", replies.Permissions, call, { path });
      return new Set(Object.keys(permissions[path] ?? {}));
    },
    isFree: async (vmid, call) => {
      try {
        await get("/cluster/nextid", z.unknown(), call, { vmid });
        return true;
      } catch (error) {
        if (error instanceof FleetError && error.code === "vmid_taken") return false;
        throw error;
      }
    },
    list: (node, call) => getOf(node, "/lxc", LxcEntry.array(), call),
    lxc: (node, vmid) => createLxcApi(send, node, vmid),
    createLxc: (node, params, call) =>
      send({ method: "POST", path: `${nodePath(node)}/lxc`, node, params }, Upid, call),
    volumes: async (node, storage, content, call) => {
      const path = `${nodePath(node)}/storage/${encodeSegment(storage)}/content`;
      const found = await send({ method: "GET", path, node, params: { content } }, replies.Volume.array(), call);
      return found.map(({ volid }) => volid);
    },
    backup: async (node, { vmid, storage, notes }, call) => {
      // Only a protected one is not held against the storage's retention (PVE::VZDump), and no backup job prunes it meanwhile.
      const kept = { remove: false, protected: true };
      // A node saves one guest after the other: behind a nightly backup this would hold the template from clones for hours.
      const patience = { lockwait: 1 };
      const params = { vmid, storage, "notes-template": notes, mode: "stop", compress: "zstd", ...kept, ...patience };
      const request = { method: "POST", path: `${nodePath(node)}/vzdump`, node, params } as const;
      const answer = await send(request, z.union([Upid, z.literal("OK")]), call);
      if (answer !== "OK") return answer;
      // PVE::API2::VZDump passes over what is on other nodes.
      throw new FleetError("container_missing", `container ${vmid} is not on ${node} any more`, {
        facts: { node, vmid },
      });
    },
    backups: (node, storage, vmid, call) => {
      const path = `${nodePath(node)}/storage/${encodeSegment(storage)}/content`;
      return send({ method: "GET", path, node, params: { content: "backup", vmid } }, replies.Volume.array(), call);
    },
    unprotect: async (node, storage, volid, call) => {
      const path = `${nodePath(node)}/storage/${encodeSegment(storage)}/content/${encodeSegment(volid)}`;
      await send({ method: "PUT", path, node, params: { protected: false } }, z.null(), call);
    },
    deleteVolume: (node, storage, volid, call) => {
      const path = `${nodePath(node)}/storage/${encodeSegment(storage)}/content/${encodeSegment(volid)}`;
      return send({ method: "DELETE", path, node, params: { delay: 5 } }, Upid.nullable(), call);
    },
    tasks: createTasksApi(send),
  };
}

function createTasksApi(send: Send): TasksApi {
  const of = (upid: Upid) => {
    const { node } = parseUpid(upid);
    return { node, path: `${nodePath(node)}/tasks/${encodeSegment(upid)}` };
  };
  return {
    status: (upid, call) => {
      const { node, path } = of(upid);
      return send({ method: "GET", path: `${path}/status`, node }, replies.TaskStatus, call);
    },
    list: (node, filter, call) => {
      const path = `${nodePath(node)}/tasks`;
      return send({ method: "GET", path, node, params: { ...filter } }, replies.TaskEntry.array(), call);
    },
    stop: async (upid, call) => {
      await send({ method: "DELETE", ...of(upid) }, Nothing, call);
    },
    log: async (upid, options, call) => {
      const { node, path } = of(upid);
      const lines = await send(
        { method: "GET", path: `${path}/log`, node, params: { ...options } },
        replies.TaskLog,
        call,
      );
      return lines.map((line) => line.t);
    },
  };
}

const nodePath = (node: NodeName) => `/nodes/${encodeSegment(node)}`;

/** Rows that are read in one go. */
const PAGE = 100;

/** A long list is read in pages, and others have their turn in between: a gate may answer in the same process. */
async function parse<Schema extends z.ZodType>(
  schema: Schema,
  data: unknown,
): Promise<z.ZodSafeParseResult<z.output<Schema>>> {
  if (!(schema instanceof z.ZodArray) || !Array.isArray(data) || data.length <= PAGE) return schema.safeParse(data);
  const rows: unknown[] = [];
  for (let at = 0; at < data.length; at += PAGE) {
    const page = schema.safeParse(data.slice(at, at + PAGE));
    if (!page.success) return page as z.ZodSafeParseError<z.output<Schema>>; // its type is of what would have been
    rows.push(...z.unknown().array().parse(page.data));
    await pause();
  }
  return { success: true, data: rows as z.output<Schema> }; // page by page
}

/** Names the fields and what was wrong with them, never their values. */
function unexpectedData(request: Parameters<Send>[0], error: z.ZodError): FleetError {
  const { method, path } = request;
  const fields = error.issues.slice(0, 5).map((issue) => `${issue.path.join(".") || "data"} ${issue.code}`);
  const code = method === "GET" ? "pve_bad_reply" : "outcome_unknown";
  return new FleetError(code, `the answer to ${method} ${path} is not what PVE gives: ${fields.join("; ")}`, {
    facts: { ...placeOf(request), fields },
  });
}
