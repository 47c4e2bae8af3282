/** Bringing a fresh clone to what was asked for: one PUT where something differs, none where nothing does. */

import { randomBytes } from "node:crypto";
import type { z } from "zod";
import type { WorkerConfig } from "../../shared/config.ts";
import { FleetError } from "../../shared/errors.ts";
import { SnapshotId } from "../../shared/ids.ts";
import type { MountPoint, Network } from "../../shared/jobs/fields.ts";
import type { ProvisionInput } from "../../shared/jobs/provision.ts";
import { loadReservation, reserve } from "../../shared/placement/reservation.ts";
import { hasConfigEnv } from "../../shared/state/inventory.ts";
import type { AddressRange } from "../../shared/state/operations.ts";
import { EXECD_TOKEN_ENV } from "../exec/execd.ts";
import type { LxcConfig, Params } from "../pve/api.ts";
import {
  formatEnv,
  formatFeatures,
  formatNet,
  formatStartup,
  formatTags,
  type NetConfig,
  parseEnv,
  parseFeatures,
  parseMount,
  parseNet,
  parseSizeMib,
} from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import { containerOf, ownContainer } from "./look.ts";
import { mapNetworks, withoutAddress } from "./networks.ts";
import { toOthers } from "./reservation.ts";
import { hasToken, replaceToken } from "./stamp.ts";
import { runTask } from "./task.ts";

/**
 * `early`: the config as it was read while the clone was still being made; all of it but the disks.
 * Throws `sandbox_gone` when somebody removed it, `invalid_input` where the template has no network to change.
 */
export async function configureClone(
  run: Run<"provision">,
  token: string | null,
  early: LxcConfig | null,
): Promise<void> {
  const { lxc, place } = containerOf(run);
  const { redis, keys } = run.context;
  const { diskGib, mountPoints } = run.input;
  const reserved = loadReservation(redis, keys, place.node, run.sandbox.id);
  reserved.catch(() => {}); // awaited below; what comes before it may fail first
  const needsDisks = diskGib !== undefined || mountPoints.length > 0;
  const config = early === null || needsDisks ? (await ownContainer(run)).config : early;
  const leasedIp = needsLease(run) ? await run.leaseAddress(rangeOf(run.context.config)) : undefined;
  // A snapshot's are those of a sandbox that may run beside it.
  const isCopy = SnapshotId.safeParse(run.input.template).success;
  const { net0 = config.net0, ...others } = isCopy ? mapNetworks(config, withoutAddress) : {};
  const wanted = desiredNet(net0, run.input.network ?? {}, run.context.config, leasedIp);
  // PVE makes up a MAC address where none is given, but we must know it to tell the container's own addresses.
  const net = wanted && { ...wanted, hwaddr: wanted.hwaddr ?? randomMac() };
  const handOver = token === null ? {} : tokenParams(config, token, run.context.inventory.current().version);
  const params = changedParams(config, {
    ...desiredConfig(run.input, config),
    ...others,
    ...(net ? { net0: formatNet(net) } : {}),
    ...handOver,
  });
  if (early === null && Object.keys(handOver).some((key) => key in params)) await stopStarted(run);
  const { cores = config.cores, cpulimit = config.cpulimit, swapMib: swap = config.swap } = run.input;
  await run.begin("configure", {
    sandbox: { state: "configuring", hwaddr: net?.hwaddr?.toUpperCase() ?? null },
    also: reserve(keys, place.node, run.sandbox.id, { ...(await reserved), ...toOthers({ cores, cpulimit, swap }) }),
  });
  if (Object.keys(params).length > 0) await run.timed("configure", () => lxc.setConfig(params, run.writing));
  const current = rootfsGib(config);
  if (diskGib !== undefined && (current === undefined || diskGib > current)) {
    await runTask(run, {
      step: "resize",
      kind: "resize",
      start: () => lxc.resize("rootfs", `${diskGib}G`, run.writing),
    });
  }
}

function needsLease(run: Run<"provision">): boolean {
  const asked = run.input.network?.ip;
  return asked === "lease" || (asked === undefined && run.context.config.PVE_IP_RANGE !== undefined);
}

/** In the range that PVE itself uses (Proxmox' OUI). */
const randomMac = () =>
  `BC:24:11:${randomBytes(3)
    .toString("hex")
    .toUpperCase()
    .replace(/..(?=.)/g, "$&:")}`;

/** Throws `not_configured` without PVE_IP_RANGE. */
export function rangeOf({ PVE_IP_RANGE: range }: Pick<WorkerConfig, "PVE_IP_RANGE">): AddressRange {
  if (range) return range;
  throw new FleetError("not_configured", 'network.ip "lease" needs PVE_IP_RANGE', {
    facts: { variables: ["PVE_IP_RANGE"] },
  });
}

/** The clone's net0 with what was asked for, or null when the template has none and none was asked for. Pure. */
export function desiredNet(
  inherited: string | undefined,
  asked: z.output<typeof Network>,
  config: Pick<WorkerConfig, "PVE_BRIDGE" | "PVE_GATEWAY">,
  leasedIp: string | undefined,
): NetConfig | null {
  const base = inherited === undefined ? null : parseNet(inherited);
  const bridge = asked.bridge ?? config.PVE_BRIDGE ?? base?.bridge;
  if (bridge === undefined) {
    if (Object.keys(asked).length === 0) return null;
    throw new FleetError(
      "invalid_input",
      "network.bridge: the template has no net0, so a bridge is needed (or set PVE_BRIDGE)",
      { facts: { fields: ["network.bridge"] } },
    );
  }
  const ip = leasedIp ?? asked.ip ?? base?.ip;
  const fixed = ip?.includes("/") === true;
  const ownGateway = asked.ip === undefined && leasedIp === undefined ? base?.gw : undefined;
  const gw = fixed ? (asked.gateway ?? ownGateway ?? config.PVE_GATEWAY) : undefined;
  const gw6 = asked.gateway6 ?? base?.gw6;
  const net: NetConfig = {
    ...(base ?? { name: "eth0", type: "veth" }),
    bridge,
    firewall: asked.firewall ?? true,
    ...(ip === undefined ? {} : { ip }),
    ...(gw === undefined ? {} : { gw }),
    ...((asked.ip6 ?? base?.ip6) === undefined ? {} : { ip6: asked.ip6 ?? base?.ip6 ?? "" }),
    ...(gw6 === undefined ? {} : { gw6 }),
    ...(asked.hwaddr === undefined ? {} : { hwaddr: asked.hwaddr.toUpperCase() }),
    ...(asked.vlan === undefined ? {} : { tag: asked.vlan }),
    ...(asked.rateMbps === undefined ? {} : { rate: asked.rateMbps }),
    ...(asked.mtu === undefined ? {} : { mtu: asked.mtu }),
  };
  if (gw === undefined) delete net.gw;
  return net;
}

/** What an input asks of the config, net0 and env apart. Pure. */
export function desiredConfig(input: ProvisionInput, config: LxcConfig): Params {
  const { nesting } = input.features ?? {};
  const { order, upDelaySec: up, downDelaySec: down } = input.startup ?? {};
  const startup = {
    ...(order === undefined ? {} : { order }),
    ...(up === undefined ? {} : { up }),
    ...(down === undefined ? {} : { down }),
  };
  return {
    // A template is often protected; its clones must not be, or nothing could ever destroy them.
    protection: false,
    cores: input.cores,
    cpulimit: input.cpulimit,
    cpuunits: input.cpuunits,
    memory: input.memoryMib,
    swap: input.swapMib,
    onboot: input.onboot,
    ...(Object.keys(startup).length > 0 ? { startup: formatStartup(startup) } : {}),
    ...(nesting === undefined
      ? {}
      : { features: formatFeatures({ ...parseFeatures(config.features ?? ""), nesting }) }),
    ...(input.tags.length > 0 ? { tags: formatTags(input.tags) } : {}),
    ...desiredMounts(input, config),
  };
}

/** New mount points take free numbers; one whose path the container has already is not made twice. Pure. */
function desiredMounts({ mountPoints }: ProvisionInput, config: LxcConfig): Params {
  const there = Object.entries(config).filter(([key]) => /^mp\d+$/.test(key));
  const paths = new Set(there.map(([, value]) => parseMount(String(value)).mp));
  const used = new Set(there.map(([key]) => key));
  const mounts: Params = {};
  for (const mount of mountPoints.filter(({ path }) => !paths.has(path))) {
    let at = 0;
    while (used.has(`mp${at}`)) at += 1;
    used.add(`mp${at}`);
    mounts[`mp${at}`] = formatMountPoint(mount);
  }
  return mounts;
}

const formatMountPoint = ({ storage, sizeGib, path, backup, readOnly }: z.output<typeof MountPoint>) =>
  [`${storage}:${sizeGib}`, `mp=${path}`, ...(backup ? ["backup=1"] : []), ...(readOnly ? ["ro=1"] : [])].join(",");

/** How execd gets its token at the start: from the environment, or before PVE 9.1 from where the template's hookscript looks. */
export function tokenParams(config: LxcConfig, token: string, version: string): Params {
  if (hasConfigEnv(version)) return { env: formatEnv({ ...parseEnv(config.env ?? ""), [EXECD_TOKEN_ENV]: token }) };
  // The clone request has written it; a container that was made with a token that Redis lost has another.
  return hasToken(config.description, token) ? {} : { description: replaceToken(config.description, token) };
}

/** execd reads its token only when it starts: one that Redis lost may be in force already. */
async function stopStarted(run: Run<"provision">): Promise<void> {
  const { lxc } = containerOf(run);
  if ((await lxc.status(run.call)).status === "stopped") return;
  await runTask(run, { step: "stop", kind: "stop", start: () => lxc.stop({}, run.writing) });
}

/** Size of the root disk in GiB, where the config tells it. */
export function rootfsGib(config: LxcConfig): number | undefined {
  const size = config.rootfs === undefined ? undefined : parseMount(config.rootfs).size;
  return size === undefined ? undefined : parseSizeMib(size) / 1024;
}

/** Only what differs from the container as it is. Pure. */
export function changedParams(config: LxcConfig, desired: Params): Params {
  const entries = Object.entries(desired).filter(([key, value]) => {
    if (value === undefined) return false;
    const has = config[key];
    // PVE writes the properties of a network in another order than we do.
    if (/^net\d+$/.test(key) && typeof has === "string") return formatNet(parseNet(has)) !== value;
    if (typeof value === "boolean") return Boolean(has) !== value;
    return String(has ?? "") !== String(value);
  });
  return Object.fromEntries(entries);
}
