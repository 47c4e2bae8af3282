/** Facts as short texts for people. Pure. */

import type { FleetEvent, OperationView, Resources, SandboxRecord, SandboxState, SandboxView } from "../index.ts";
import type { NodeView } from "../nodes.ts";
import type { Colour } from "./terminal.ts";

type Paint = (colour: Colour, text: string) => string;

export const NONE = "-";

function colourOf(state: SandboxState | OperationView["status"] | undefined): Colour {
  switch (state) {
    case "running":
    case "warm":
    case "succeeded":
      return "green";
    case "failed":
    case "lost":
    case "quarantined":
      return "red";
    case "destroyed":
    case "claimed":
    case "stopped":
    case "paused":
    case "template":
    case "canceled":
    case undefined:
      return "dim";
    default:
      return "yellow";
  }
}

/** The two largest units, such as `2d 3h`, `4m 5s` or `0.31s`. */
export function formatDuration(ms: number): string {
  const sec = ms / 1_000;
  if (sec < 10) return `${sec.toFixed(2)}s`;
  const units = [
    ["d", 86_400],
    ["h", 3_600],
    ["m", 60],
    ["s", 1],
  ] as const;
  const parts: string[] = [];
  let left = Math.round(sec);
  for (const [name, size] of units) {
    const amount = Math.floor(left / size);
    left -= amount * size;
    if (amount > 0 || parts.length > 0) parts.push(`${amount}${name}`);
  }
  return parts.slice(0, 2).join(" ");
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let amount = bytes;
  let unit = 0;
  while (amount >= 1_024 && unit < units.length - 1) {
    amount /= 1_024;
    unit++;
  }
  return `${unit === 0 ? amount : amount.toFixed(1)} ${units[unit]}`;
}

export const SANDBOX_HEAD = ["SANDBOX", "STATE", "NODE", "VMID", "HOSTNAME", "TEMPLATE", "TEAM", "AGE", "TTL"] as const;

export function toSandboxRow(sandbox: SandboxRecord, now: number, paint: Paint): string[] {
  return [
    sandbox.id,
    paint(colourOf(sandbox.state), sandbox.state),
    sandbox.node ?? NONE,
    String(sandbox.vmid ?? NONE),
    sandbox.hostname ?? NONE,
    sandbox.template,
    sandbox.team,
    formatDuration(Math.max(0, now - sandbox.createdAt)),
    sandbox.expiresAt === undefined ? NONE : formatDuration(Math.max(0, sandbox.expiresAt - now)),
  ];
}

const toIdle = ({ idleSeconds = 0, idleAction }: SandboxRecord): string =>
  `${idleAction} after ${formatDuration(idleSeconds * 1_000)}`;

const toEnd = ({ ttlAction, ttlExtendOnUse }: SandboxRecord, at: number): string =>
  `${formatTime(at)} (${ttlAction}${ttlExtendOnUse ? ", later with each use" : ""})`;

function toResources({ cores, memoryMib, swapMib, diskGib }: Resources): string {
  const cpu = cores === 0 ? ["all cores"] : cores === undefined ? [] : [`${cores} core${cores === 1 ? "" : "s"}`];
  const swap = swapMib === undefined ? [] : [`${swapMib} MiB swap`];
  return [...cpu, `${memoryMib} MiB memory`, ...swap, `${Math.round(diskGib * 10) / 10} GiB disk`].join(", ");
}

export function toSandboxFacts(sandbox: SandboxView, paint: Paint): [string, string][] {
  return [
    ["sandbox", sandbox.id],
    ["instance id", sandbox.instanceId ?? NONE],
    ["state", paint(colourOf(sandbox.state), sandbox.state)],
    ["team", sandbox.team],
    ["template", sandbox.template],
    ["node", sandbox.node ?? NONE],
    ["vmid", String(sandbox.vmid ?? NONE)],
    ["hostname", sandbox.hostname ?? NONE],
    ["address", sandbox.address ?? NONE],
    ["resources", sandbox.resources === undefined ? NONE : toResources(sandbox.resources)],
    ["created", formatTime(sandbox.createdAt)],
    ["expires", sandbox.expiresAt === undefined ? NONE : toEnd(sandbox, sandbox.expiresAt)],
    ["idle", sandbox.idleSeconds === undefined ? NONE : toIdle(sandbox)],
    ["wake on HTTP", sandbox.wakeOnHttp ? "yes" : "no"],
    ["operation", sandbox.operation],
    ...Object.entries(sandbox.metadata).map(([key, value]): [string, string] => [`metadata ${key}`, value]),
    ...sandbox.services.map(({ name, port, url }): [string, string] => [`service ${name}`, `${url} (port ${port})`]),
  ];
}

export function toOperationFacts(operation: OperationView, paint: Paint): [string, string][] {
  const { sandbox, error, lastError, timings } = operation;
  const took = (operation.endedAt ?? Number.NaN) - operation.acceptedAt;
  return [
    ["operation", `${operation.id} (${operation.kind})`],
    ["status", paint(colourOf(operation.status), operation.status) + (operation.aborting ? ", asked to end" : "")],
    ["sandbox", sandbox.state === undefined ? sandbox.id : `${sandbox.id} (${sandbox.state})`],
    ["node", sandbox.node ?? NONE],
    ["vmid", String(sandbox.vmid ?? NONE)],
    ["team", operation.team],
    ["waiting for", operation.waitingFor ?? NONE],
    ["step", operation.step ?? NONE],
    ["accepted", formatTime(operation.acceptedAt)],
    ["took", Number.isNaN(took) ? NONE : formatDuration(took)],
    ...Object.entries(timings).map(([step, ms]): [string, string] => [`  ${step}`, formatDuration(ms)]),
    ...(lastError && !error
      ? [["last error", `${lastError.code}: ${lastError.message}`] satisfies [string, string]]
      : []),
    ...(error ? [["error", paint("red", `${error.code}: ${error.message}`)] satisfies [string, string]] : []),
  ];
}

export const NODE_HEAD = ["NODE", "STATE", "CORES", "MEMORY", "SANDBOXES", "BUSY", "QUEUE", "EXEC", "LABELS"] as const;

/** Queues as `active/waiting`; what tries again later counts as waiting. */
export function toNodeRow(node: NodeView, paint: Paint): string[] {
  const count = ({ active, waiting, delayed }: NodeView["queues"]["node"]) => `${active}/${waiting + delayed}`;
  return [
    node.name,
    toNodeState(node, paint),
    String(node.cores),
    `${formatBytes(node.memoryUsedBytes)} of ${formatBytes(node.memoryBytes)}`,
    `${node.sandboxes}${node.settings.maxSandboxes === undefined ? "" : ` of ${node.settings.maxSandboxes}`}`,
    String(node.slotsTaken),
    count(node.queues.node),
    count(node.queues.exec),
    node.settings.labels?.join(" ") ?? NONE,
  ];
}

function toNodeState({ online, breaker, cordon }: NodeView, paint: Paint): string {
  const state = !online
    ? paint("red", "offline")
    : breaker === "closed"
      ? paint("green", "online")
      : paint("red", "no answer");
  if (cordon === undefined) return state;
  return `${state}, ${paint("yellow", "cordoned")} by ${cordon.by}${cordon.reason ? `: ${cordon.reason}` : ""}`;
}

export function toEventLine(event: FleetEvent, paint: Paint): string {
  return [formatTime(event.at), event.cursor, event.sandbox, event.operation, event.type, toDetail(event, paint)]
    .join("  ")
    .trimEnd();
}

function toDetail(event: FleetEvent, paint: Paint): string {
  switch (event.type) {
    case "sandbox.changed": {
      const { before, state, node, vmid } = event.data;
      const place = node === undefined ? "" : ` on ${node}${vmid === undefined ? "" : ` as ${vmid}`}`;
      return `${before} -> ${paint(colourOf(state), state)}${place}`;
    }
    case "sandbox.updated":
      return event.data.fields.join(", ");
    case "container.locked":
    case "container.unlocked":
      return paint("yellow", `${event.data.vmid} on ${event.data.node}: ${event.data.text}`);
    case "container.quarantined":
    case "container.removed":
      return `${event.data.vmid} on ${event.data.node}: ${event.data.reason}`;
    case "sandbox.expiring":
      return paint("yellow", `${event.data.action} at ${formatTime(event.data.expiresAt)}`);
    case "operation.accepted":
      return event.data.kind;
    case "operation.failed":
    case "operation.canceled":
      return paint("red", event.data.code);
    default:
      return "";
  }
}

export const formatTime = (at: number): string => new Date(at).toISOString();
