import { check, has } from "../access.ts";
import { now } from "../clock.ts";
import type { Container } from "../container.ts";
import type { PveNode } from "../node.ts";
import { invalid } from "../refusal.ts";
import { type Call, type Route, route } from "../router.ts";
import { optional, VMID } from "../schema/lxc.ts";
import { MIB } from "../storage.ts";
import { usedMemoryMib } from "../world.ts";
import { statusOf } from "./lxc-status.ts";
import { nodeFacts, statsOf } from "./nodes.ts";

const audit = (call: Call) => check(call.world, call.by, "/", "Sys.Audit");
const modify = (call: Call) => check(call.world, call.by, "/", "Sys.Modify");
const text = { type: "string" } as const;

export const clusterRoutes: Route[] = [
  route("GET", "/cluster/nextid", { rules: { vmid: optional(VMID) } }, nextId),
  route(
    "GET",
    "/cluster/resources",
    { rules: { type: { type: "string", values: ["vm", "storage", "node", "sdn"] } } },
    resources,
  ),
  route("GET", "/cluster/status", { daemon: true, allow: audit }, status),
  route("GET", "/cluster/options", { allow: audit }, () => ({ keyboard: "en-us", mac_prefix: "BC:24:11" })),
  route("GET", "/cluster/firewall/options", { allow: audit }, ({ world }) => firewallJson(world.clusterFirewall)),
  route(
    "PUT",
    "/cluster/firewall/options",
    {
      allow: modify,
      rules: {
        enable: { type: "integer", min: 0 },
        ebtables: { type: "boolean" },
        policy_in: { type: "string", values: ["ACCEPT", "REJECT", "DROP"] },
        policy_out: { type: "string", values: ["ACCEPT", "REJECT", "DROP"] },
        policy_forward: { type: "string", values: ["ACCEPT", "DROP"] },
        log_ratelimit: text,
        delete: text,
        digest: text,
      },
    },
    ({ world, params }) => setFirewall(world.clusterFirewall, params),
  ),
];

export function firewallJson(options: ReadonlyMap<string, string>): Record<string, string | number> {
  const shown: Record<string, string | number> = { digest: "da39a3ee5e6b4b0d3255bfef95601890afd80709" };
  for (const [key, value] of options) shown[key] = /^\d+$/.test(value) ? Number(value) : value;
  return shown;
}

export function setFirewall(options: Map<string, string>, params: Readonly<Record<string, string>>): null {
  for (const [key, value] of Object.entries(params)) {
    if (!/^(node|vmid|digest|delete)$/.test(key)) options.set(key, value);
  }
  for (const key of (params["delete"] ?? "").split(/[,;\s]+/)) options.delete(key);
  return null;
}

/** The lowest free id at this moment, as a string; it reserves nothing. */
function nextId({ world, params }: Call): string {
  const { vmid } = params;
  if (vmid !== undefined) {
    if (isTaken(world, Number(vmid))) throw invalid({ vmid: `VM ${vmid} already exists` });
    return vmid;
  }
  let free = 100;
  while (isTaken(world, free)) free += 1;
  return String(free);
}

const isTaken = (world: Call["world"], vmid: number) => world.containers.has(vmid) || world.machines.has(vmid);

function resources(call: Call): unknown[] {
  const { type } = call.params;
  const shown: unknown[] = [];
  if (type === undefined || type === "vm") {
    for (const container of call.world.containers.values()) {
      if (has(call.world, call.by, `/vms/${container.vmid}`, "VM.Audit")) shown.push(resourceOf(call, container));
    }
    for (const [vmid, node] of call.world.machines) {
      if (has(call.world, call.by, `/vms/${vmid}`, "VM.Audit")) shown.push(machineOf(vmid, node));
    }
    if (type === undefined) shown.push(...pools(call));
  }
  if (type === undefined || type === "node") {
    for (const node of call.world.nodes.values()) shown.push(nodeResource(call, node));
  }
  if (type === undefined || type === "storage") shown.push(...storages(call));
  return shown;
}

function machineOf(vmid: number, node: string): Record<string, unknown> {
  const figures = { maxcpu: 1, cpu: 0, maxmem: 512 * MIB, mem: 0, maxdisk: 0, disk: 0, uptime: 0, template: 0 };
  return { id: `qemu/${vmid}`, type: "qemu", vmid, node, name: `human-${vmid}`, status: "stopped", ...figures };
}

function pools({ world, by }: Call): unknown[] {
  return [...world.pools.keys()]
    .filter((pool) => has(world, by, `/pool/${pool}`, "Pool.Audit"))
    .map((pool) => ({ id: `/pool/${pool}`, pool, type: "pool" }));
}

/**
 * The list of VMIDs, nodes, locks and tags is live; name, status and figures are what the node's statistics daemon said
 * some seconds ago, about whoever had the VMID then.
 */
function resourceOf({ world, by }: Call, container: Container): Record<string, unknown> {
  const { vmid, node, config } = container;
  const seen = world.seen(vmid);
  const tags = config.get("tags");
  const pool = world.poolOf(vmid);
  const live = {
    id: `lxc/${vmid}`,
    type: "lxc",
    vmid,
    node,
    ...(config.lock === undefined ? {} : { lock: config.lock }),
    ...(tags === undefined ? {} : { tags }),
    ...(pool !== undefined && has(world, by, `/pool/${pool}`, "Pool.Audit") ? { pool } : {}),
  };
  const silent = world.nodes.get(node)?.state === "unreachable";
  if (seen === undefined || silent) return { ...live, status: "unknown" };
  const {
    cpus,
    maxmem,
    maxswap: _swap,
    maxdisk,
    disk,
    netin,
    netout,
    diskread,
    diskwrite,
  } = statusOf(world, container);
  const running = seen.status === "running";
  return {
    ...live,
    name: seen.name,
    status: seen.status,
    template: seen.template ? 1 : 0,
    maxcpu: cpus,
    cpu: running ? 0.0004 : 0,
    mem: running ? usedMemoryMib(container) * MIB : 0,
    maxmem,
    maxdisk,
    disk,
    netin,
    netout,
    diskread,
    diskwrite,
    uptime: running && seen.startedAt !== undefined ? Math.floor((now() - seen.startedAt) / 1000) : 0,
  };
}

function nodeResource({ world, by }: Call, node: PveNode): Record<string, unknown> {
  const known = has(world, by, `/nodes/${node.name}`, "Sys.Audit");
  return {
    ...nodeFacts(node),
    "cgroup-mode": 2,
    ...(known && node.state !== "unreachable" ? statsOf(world, node) : {}),
  };
}

function storages({ world, by }: Call): unknown[] {
  const shown: unknown[] = [];
  for (const node of world.nodes.values()) {
    for (const storage of node.storages.values()) {
      if (!has(world, by, `/storage/${storage.name}`, "Datastore.Audit")) continue;
      shown.push({
        id: `storage/${node.name}/${storage.name}`,
        type: "storage",
        storage: storage.name,
        node: node.name,
        plugintype: storage.type,
        status: node.state === "unreachable" ? "unknown" : "available",
        shared: storage.shared ? 1 : 0,
        content: storage.content,
        disk: storage.usedBytes,
        maxdisk: storage.totalBytes,
      });
    }
  }
  return shown;
}

function status({ world }: Call): unknown[] {
  const nodes = [...world.nodes.values()].map((node) => ({
    id: `node/${node.name}`,
    type: "node",
    name: node.name,
    nodeid: world.nodes.size === 1 ? 0 : node.index + 1,
    ip: node.address,
    online: node.state === "unreachable" ? 0 : 1,
    local: node.index === 0 ? 1 : 0,
    level: "",
  }));
  if (nodes.length === 1) return nodes;
  const cluster = {
    id: "cluster",
    type: "cluster",
    name: "stand-in",
    nodes: nodes.length,
    quorate: world.quorum ? 1 : 0,
    version: nodes.length,
  };
  return [cluster, ...nodes];
}
