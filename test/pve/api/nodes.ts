import { check, checkAny, has } from "../access.ts";
import { now } from "../clock.ts";
import type { PveNode } from "../node.ts";
import { invalid, refuse } from "../refusal.ts";
import { type Call, type Route, route } from "../router.ts";
import * as format from "../schema/formats.ts";
import { NODE, optional, STORAGE, VMID } from "../schema/lxc.ts";
import type { Rule } from "../schema/rules.ts";
import { GIB, MIB, type Storage } from "../storage.ts";
import type { World } from "../world.ts";

const text: Rule = { type: "string" };
const flag: Rule = { type: "boolean" };
const ip: Rule = { type: "string", format: format.ipAddress };
const auditNode = (call: Call) => check(call.world, call.by, `/nodes/${call.params["node"]}`, "Sys.Audit");
const auditStorage = (call: Call) =>
  checkAny(call.world, call.by, `/storage/${call.params["storage"]}`, "Datastore.Audit", "Datastore.AllocateSpace");

export const nodeRoutes: Route[] = [
  route("GET", "/version", {}, ({ world }) => versionOf(world)),
  route("GET", "/nodes", {}, listNodes),
  route("GET", "/nodes/{node}", { rules: { node: NODE } }, () =>
    "lxc tasks storage network dns time status version".split(" ").map((name) => ({ name })),
  ),
  route("GET", "/nodes/{node}/version", { rules: { node: NODE } }, ({ world }) => versionOf(world)),
  route("GET", "/nodes/{node}/status", { rules: { node: NODE }, allow: auditNode }, nodeStatus),
  route("GET", "/nodes/{node}/dns", { rules: { node: NODE }, allow: auditNode }, ({ node }) => node.dns),
  route(
    "PUT",
    "/nodes/{node}/dns",
    {
      rules: { node: NODE, search: { ...text, required: true }, dns1: ip, dns2: ip, dns3: ip },
      allow: (call) => check(call.world, call.by, `/nodes/${call.params["node"]}`, "Sys.Modify"),
    },
    setDns,
  ),
  route("GET", "/nodes/{node}/time", { rules: { node: NODE }, allow: auditNode }, ({ node }) => {
    const time = Math.floor(now() / 1_000) + node.aheadSec;
    return { time, localtime: time, timezone: "UTC" };
  }),
  route("GET", "/nodes/{node}/network", { rules: { node: NODE, type: text } }, network),
  route("GET", "/storage", { rules: { type: text } }, listStorage),
  route("GET", "/storage/{storage}", { rules: { storage: STORAGE } }, ({ world, params }) => {
    const storage = world.storages.get(params["storage"] ?? "");
    if (storage === undefined) throw refuse(`storage '${params["storage"]}' does not exist`);
    return storageConfig(storage);
  }),
  route(
    "GET",
    "/nodes/{node}/storage",
    {
      daemon: true,
      rules: {
        node: NODE,
        content: text,
        enabled: flag,
        format: flag,
        storage: optional(STORAGE),
        target: optional(NODE),
      },
    },
    nodeStorages,
  ),
  route(
    "GET",
    "/nodes/{node}/storage/{storage}/status",
    { daemon: true, rules: { node: NODE, storage: STORAGE }, allow: auditStorage },
    (call) => storageStatus(storageOf(call)),
  ),
  route(
    "GET",
    "/nodes/{node}/storage/{storage}/content",
    { daemon: true, rules: { node: NODE, storage: STORAGE, content: text, vmid: optional(VMID) }, allow: auditStorage },
    content,
  ),
];

function versionOf(world: World): unknown {
  return world.version === "9.2"
    ? { release: "9.2", version: "9.2.11", repoid: "6fd1e9cf7d6cbc6b" }
    : { release: "8.4", version: "8.4.1", repoid: "2a5fa54a8503f96d" };
}

export function nodeFacts(node: PveNode): Record<string, unknown> {
  const status = node.state === "unreachable" ? "offline" : "online";
  return { id: `node/${node.name}`, type: "node", node: node.name, status, level: "" };
}

/** A node itself takes 2 GiB and some CPU. */
export function statsOf(world: World, node: PveNode) {
  const local = node.storages.get("local") ?? node.storages.values().next().value;
  return {
    maxcpu: node.cores,
    cpu: 0.02,
    maxmem: node.memoryMib * MIB,
    mem: 2 * GIB + world.runningMemoryMib(node) * MIB,
    maxdisk: local?.totalBytes ?? 0,
    disk: local?.usedBytes ?? 0,
    uptime: Math.floor((now() - node.bootedAt) / 1000),
  };
}

function listNodes({ world, by }: Call): unknown[] {
  return [...world.nodes.values()].map((node) => ({
    ...nodeFacts(node),
    ssl_fingerprint: world.fingerprint,
    ...(node.state !== "unreachable" && has(world, by, `/nodes/${node.name}`, "Sys.Audit") ? statsOf(world, node) : {}),
  }));
}

function nodeStatus({ world, node }: Call): unknown {
  const { maxmem, mem, maxdisk, disk, uptime } = statsOf(world, node);
  const nine = world.version === "9.2";
  return {
    uptime,
    idle: 0,
    wait: 0,
    cpu: 0.02,
    loadavg: ["0.10", "0.12", "0.09"],
    memory: { total: maxmem, used: mem, free: maxmem - mem, available: maxmem - mem },
    swap: { total: 8 * GIB, used: 0, free: 8 * GIB },
    rootfs: { total: maxdisk, used: disk, free: maxdisk - disk, avail: maxdisk - disk },
    ksm: { shared: 0 },
    cpuinfo: {
      model: "Stand-in CPU",
      cores: node.cores,
      cpus: node.cores,
      sockets: 1,
      mhz: "2400.000",
      hvm: "1",
      flags: "",
      user_hz: 100,
    },
    kversion: nine ? "Linux 6.17.2-1-pve" : "Linux 6.8.12-9-pve #1 SMP PREEMPT_DYNAMIC",
    "current-kernel": {
      sysname: "Linux",
      release: nine ? "6.17.2-1-pve" : "6.8.12-9-pve",
      version: "#1 SMP",
      machine: "x86_64",
    },
    "boot-info": { mode: "efi", secureboot: 0 },
    pveversion: nine ? "pve-manager/9.2.11/6fd1e9cf7d6cbc6b" : "pve-manager/8.4.1/2a5fa54a8503f96d",
  };
}

function setDns({ node, params }: Call): null {
  const { node: _, ...dns } = params;
  node.dns = dns;
  return null;
}

function network({ node, params }: Call): unknown[] {
  const bridge = {
    iface: "vmbr0",
    type: "bridge",
    active: 1,
    autostart: 1,
    bridge_ports: "eno1",
    cidr: `${node.address}/24`,
    address: node.address,
    netmask: "24",
    gateway: "10.10.10.254",
    method: "static",
    priority: 3,
  };
  const port = { iface: "eno1", type: "eth", active: 1, exists: 1, method: "manual", priority: 2 };
  const { type } = params;
  return [port, bridge].filter(
    (entry) => type === undefined || entry.type === type || (type.startsWith("any_") && entry.type === "bridge"),
  );
}

function storageConfig(storage: Storage): Record<string, unknown> {
  return {
    storage: storage.name,
    type: storage.type,
    content: storage.content,
    digest: "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    ...(storage.type === "lvmthin" ? { vgname: "pve", thinpool: "data" } : {}),
    ...(storage.type === "dir" ? { path: "/var/lib/vz" } : {}),
    ...(storage.type === "rbd" ? { pool: "rbd", krbd: 1 } : {}),
    ...(storage.type === "zfspool" ? { pool: "rpool/data", sparse: 1 } : {}),
    ...(storage.shared && storage.type !== "rbd" ? { shared: 1 } : {}),
  };
}

function listStorage({ world, by, params }: Call): unknown[] {
  return [...world.storages.values()]
    .filter((storage) => params["type"] === undefined || params["type"] === storage.type)
    .filter((storage) => has(world, by, `/storage/${storage.name}`, "Datastore.Audit"))
    .map(storageConfig);
}

function storageStatus(storage: Storage): Record<string, unknown> {
  const { totalBytes: total, usedBytes: used } = storage;
  return {
    type: storage.type,
    content: storage.content,
    shared: storage.shared ? 1 : 0,
    active: 1,
    enabled: 1,
    total,
    used,
    avail: Math.max(0, total - used),
  };
}

function nodeStorages({ world, by, node, params }: Call): unknown[] {
  return [...node.storages.values()]
    .filter((storage) => params["storage"] === undefined || params["storage"] === storage.name)
    .filter((storage) => params["content"] === undefined || storage.holds(params["content"]))
    .filter((storage) =>
      ["Datastore.Audit", "Datastore.AllocateSpace"].some((right) => has(world, by, `/storage/${storage.name}`, right)),
    )
    .map((storage) => ({
      storage: storage.name,
      ...storageStatus(storage),
      used_fraction: storage.usedBytes / storage.totalBytes,
    }));
}

function storageOf(call: Call): Storage {
  const name = call.params["storage"] ?? "";
  const storage = call.node.storages.get(name);
  if (storage !== undefined) return storage;
  if (call.world.storages.has(name)) throw refuse(`storage '${name}' is not available on node '${call.node.name}'`);
  throw refuse(`storage '${name}' does not exist`);
}

function content(call: Call): unknown[] {
  const storage = storageOf(call);
  const { content: wanted, vmid } = call.params;
  if (wanted !== undefined && !/^(backup|images|import|iso|none|rootdir|snippets|vztmpl)$/.test(wanted)) {
    throw invalid({ content: `invalid format - invalid content type '${wanted}'\n` });
  }
  const shown: unknown[] = [];
  for (const volume of storage.volumes.values()) {
    if (wanted !== undefined && wanted !== "rootdir") break;
    if (vmid !== undefined && volume.owner !== Number(vmid)) continue;
    shown.push({
      volid: volume.volid,
      vmid: volume.owner,
      content: "rootdir",
      format: volume.format,
      size: volume.sizeBytes,
      used: volume.usedBytes,
      ctime: Math.floor(volume.createdAt / 1000),
      parent: volume.parent?.slice(storage.name.length + 1) ?? null,
    });
  }
  for (const { volid, of, sizeBytes: size, createdAt, notes, protected: isProtected } of storage.backups.values()) {
    if ((wanted ?? "backup") !== "backup" || (vmid !== undefined && of.vmid !== Number(vmid))) continue;
    // PVE::Storage::check_volume_access: who may not read one does not see it.
    const sees = (path: string, right: string) => has(call.world, call.by, path, right);
    if (!sees(`/storage/${storage.name}`, "Datastore.AllocateSpace") || !sees(`/vms/${of.vmid}`, "VM.Backup")) continue;
    const kept = isProtected ? { protected: 1 } : {};
    const about = { volid, vmid: of.vmid, content: "backup", subtype: "lxc", format: "tar.zst", ...kept };
    // Of several lines the first.
    shown.push({ ...about, size, ctime: Math.floor(createdAt / 1000), ...(notes && { notes: notes.split("\n")[0] }) });
  }
  if (storage.name === "local" && (wanted === undefined || wanted === "vztmpl") && vmid === undefined) {
    for (const [volid, size] of call.node.osTemplates) {
      shown.push({ volid, size, content: "vztmpl", format: volid.endsWith("zst") ? "tzst" : "tgz", ctime: 1795458000 });
    }
  }
  return shown;
}
