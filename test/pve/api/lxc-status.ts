import { check, has } from "../access.ts";
import { toJsonValue } from "../config-file.ts";
import type { Container } from "../container.ts";
import { parseProperties, parseSize } from "../property-string.ts";
import { type Call, type Route, route, vmidOf } from "../router.ts";
import { NODE, VMID } from "../schema/lxc.ts";
import { GIB, MIB } from "../storage.ts";
import { usedMemoryMib, type World } from "../world.ts";

const rules = { node: NODE, vmid: VMID };
const allow = (call: Call) => check(call.world, call.by, `/vms/${call.params["vmid"]}`, "VM.Audit");

export const statusRoutes: Route[] = [
  route("GET", "/nodes/{node}/lxc", { daemon: true, rules: { node: NODE } }, list),
  route("GET", "/nodes/{node}/lxc/{vmid}", { rules, allow }, (call) => {
    call.world.container(call.node.name, vmidOf(call));
    return DIRECTORY.map((subdir) => ({ subdir }));
  }),
  route("GET", "/nodes/{node}/lxc/{vmid}/status", { rules, allow }, () =>
    STATUS_DIRECTORY.map((subdir) => ({ subdir })),
  ),
  route("GET", "/nodes/{node}/lxc/{vmid}/status/current", { daemon: true, rules, allow }, current),
  route("GET", "/nodes/{node}/lxc/{vmid}/interfaces", { daemon: true, rules, allow }, interfaces),
  route("GET", "/nodes/{node}/lxc/{vmid}/pending", { rules, allow }, pending),
];

const DIRECTORY =
  "config pending status vncproxy termproxy vncwebsocket spiceproxy migrate clone initlog rrd rrddata firewall snapshot resize interfaces".split(
    " ",
  );
const STATUS_DIRECTORY = "current start stop shutdown reboot migrate".split(" ");

function list({ world, by, node }: Call): unknown[] {
  const shown: unknown[] = [];
  for (const container of node.containers.values()) {
    if (has(world, by, `/vms/${container.vmid}`, "VM.Audit")) shown.push(statusOf(world, container));
  }
  return shown;
}

function current(call: Call): unknown {
  const container = call.world.container(call.node.name, vmidOf(call));
  return { ...statusOf(call.world, container), ha: { managed: 0 } };
}

/** PVE::LXC::vmstatus */
export function statusOf(world: World, container: Container): Record<string, unknown> {
  const { config, guest } = container;
  const tags = config.get("tags");
  const cores = Number(config.get("cores") ?? config.get("cpulimit") ?? 0);
  const memoryMib = Number(config.get("memory")?.trim() || 0);
  const seconds = container.uptimeSeconds;
  return {
    vmid: container.vmid,
    type: "lxc",
    name: container.name,
    status: guest === undefined ? "stopped" : "running",
    ...(guest === undefined ? {} : { pid: guest.pid }),
    ...(tags === undefined ? {} : { tags }),
    ...(container.template ? { template: 1 } : {}),
    ...(config.lock === undefined ? {} : { lock: config.lock }),
    cpus: cores > 0 ? cores : world.node(container.node).cores,
    cpu: guest === undefined ? 0 : 0.0004,
    mem: usedMemoryMib(container) * MIB,
    maxmem: (config.get("memory") === undefined ? 512 : memoryMib) * MIB,
    swap: 0,
    maxswap: Number(config.get("swap") ?? 0) * MIB,
    disk: guest === undefined ? 0 : 250 * MIB,
    maxdisk: rootSize(container),
    uptime: seconds,
    netin: seconds * 110,
    netout: seconds * 90,
    diskread: 0,
    diskwrite: 0,
  };
}

function rootSize(container: Container): number {
  const size = parseProperties(container.config.get("rootfs") ?? "", "volume").get("size");
  return (size === undefined ? undefined : parseSize(size)) ?? 4 * GIB;
}

function interfaces(call: Call): unknown {
  const container = call.world.container(call.node.name, vmidOf(call));
  if (container.guest === undefined) return null;
  const shown: unknown[] = [
    {
      name: "lo",
      hwaddr: "00:00:00:00:00:00",
      "hardware-address": "00:00:00:00:00:00",
      inet: "127.0.0.1/8",
      inet6: "::1/128",
      "ip-addresses": [
        { "ip-address": "127.0.0.1", prefix: "8", "ip-address-type": "inet" },
        { "ip-address": "::1", prefix: "128", "ip-address-type": "inet6" },
      ],
    },
  ];
  for (const [key, value] of container.config.values) {
    if (/^net\d+$/.test(key)) shown.push(networkInterface(container, key, value));
  }
  return shown;
}

/** The address is the guest's to have: none before it has booted. Only net0's is real here. */
function networkInterface(container: Container, key: string, value: string): unknown {
  const network = parseProperties(value);
  const mac = (network.get("hwaddr") ?? "").toLowerCase();
  const ip = network.get("ip");
  const own = container.taken ?? [container.guest?.address].filter((one) => one !== undefined);
  const [address, ...more] = key === "net0" ? own : [];
  const prefix = ip?.includes("/") ? (ip.split("/")[1] ?? "24") : "10";
  const link = linkLocal(mac);
  const addresses = [
    ...[address, ...more].flatMap((one) =>
      one === undefined ? [] : [{ "ip-address": one, prefix, "ip-address-type": "inet" }],
    ),
    { "ip-address": link, prefix: "64", "ip-address-type": "inet6" },
  ];
  return {
    name: network.get("name") ?? "eth0",
    hwaddr: mac,
    "hardware-address": mac,
    ...(address === undefined ? {} : { inet: `${address}/${prefix}` }),
    inet6: `${link}/64`,
    "ip-addresses": addresses,
  };
}

/** The IPv6 address that a network card gives itself (EUI-64). */
function linkLocal(mac: string): string {
  const bytes = mac.split(":").map((pair) => Number.parseInt(pair, 16));
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = bytes;
  const group = (high: number, low: number) => ((high << 8) | low).toString(16);
  return `fe80::${group(a ^ 2, b)}:${group(c, 0xff)}:${group(0xfe, d)}:${group(e, f)}`;
}

function pending(call: Call): unknown[] {
  const { config } = call.world.container(call.node.name, vmidOf(call));
  const shown: unknown[] = [];
  for (const [key, value] of config.values) {
    const next = config.pending.get(key);
    const entry = { key, value: toJsonValue(key, value) };
    if (next === undefined) shown.push(entry);
    else shown.push(next === null ? { ...entry, delete: 1 } : { ...entry, pending: toJsonValue(key, next) });
  }
  for (const [key, value] of config.pending) {
    if (!config.values.has(key) && value !== null) shown.push({ key, pending: toJsonValue(key, value) });
  }
  shown.push({ key: "digest", value: config.digest });
  return shown;
}
