/**
 * Records made anew from PVE: of each container with our stamp that has none, what the stamp, the config, the container's
 * state and its snapshots tell. Done for an operator only, who knows that Redis has lost its data.
 */
import { FleetError, toFleetError } from "../../shared/errors.ts";
import { POOL_TEAM, SnapshotId } from "../../shared/ids.ts";
import type { ExposedService } from "../../shared/jobs/fields.ts";
import { GIB } from "../../shared/placement/capacity.ts";
import { reserve } from "../../shared/placement/reservation.ts";
import { encodeFields } from "../../shared/state/codec.ts";
import type { Finding } from "../../shared/state/errands.ts";
import type { Command } from "../../shared/state/operations.ts";
import { type Restored, restoreSandbox } from "../../shared/state/restore-sandbox.ts";
import { toTemplateCommand } from "../../shared/state/templates.ts";
import { resolveUrl } from "../../shared/urls.ts";
import type { WorkerContext } from "../context.ts";
import { EXECD_TOKEN_ENV } from "../exec/execd.ts";
import { toReplica } from "../inventory/collect.ts";
import type { ClusterResource } from "../pve/api.ts";
import { parseEnv, parseNet } from "../pve/config-format.ts";
import { usableAddresses } from "../sandbox/address.ts";
import { rootfsGib } from "../sandbox/configure-clone.ts";
import type { Place } from "../sandbox/look.ts";
import { toReservation } from "../sandbox/reservation.ts";
import { readToken, type StampFacts } from "../sandbox/stamp.ts";
import { readContainerState } from "../ssh/node-tools.ts";
import type { Round } from "./round.ts";
import { readStray, type Stray, unleased } from "./strays.ts";

/** Containers at once on a node. */
const AT_ONCE = 3;
/** One whose time passed while nobody knew of it is not destroyed the moment it is known again. */
const TTL_AT_LEAST_MS = 60_000;

export async function rebuild(context: WorkerContext, round: Round): Promise<Finding[]> {
  const found = await unleased(context, listCandidates(round.guests, context));
  const findings: Finding[] = [];
  const byNode = Map.groupBy(found, ({ node }) => node);
  const lanes = [...byNode.values()].flatMap((places) => {
    const rest = places.values();
    return Array.from({ length: AT_ONCE }, async () => {
      for (const place of rest) {
        try {
          const finding = await restoreOne(context, place, round);
          if (finding) findings.push(finding);
        } catch (error) {
          round.signal.throwIfAborted();
          const { code, text } = toFleetError(error);
          findings.push({ what: "restored", ...place, done: "left", text: `${code}: ${text}; run it again` });
        }
        round.onProgress?.();
      }
    });
  });
  await Promise.all(lanes);
  context.metrics.reconciled("restored", findings.filter(({ done }) => done === "taken in").length);
  return findings;
}

/** In our range; and what was adopted outside it, by its pool or name. Templates, too. */
function listCandidates(guests: readonly ClusterResource[], { config }: WorkerContext): Place[] {
  const { PVE_VMID_RANGE: range, PVE_POOL: own, FLEET_ADOPT_PREFIXES: prefixes } = config;
  return guests.flatMap(({ type, node, vmid, pool, name = "" }) => {
    if (type !== "lxc" || node === undefined || vmid === undefined) return [];
    const isInRange = vmid >= range.first && vmid <= range.last;
    const mayBeOurs = isInRange || (own !== undefined && pool === own) || prefixes.some((one) => name.startsWith(one));
    return mayBeOurs ? [{ node, vmid }] : [];
  });
}

/** Null: it is none of ours. */
async function restoreOne(context: WorkerContext, place: Place, round: Round): Promise<Finding | null> {
  const { store, redis, keys, log } = context;
  const stray = await readStray(context, place, round);
  if (stray === null) return null;
  const { sandbox, team } = stray.stamp;
  const about = { what: "restored" as const, ...place, name: stray.config.hostname, sandbox, team };
  if (team === POOL_TEAM) {
    // Somebody may have claimed it just before, and what he left in it must not become another's.
    return { ...about, done: "left", text: "member of a pool, which may be in use; --remove-orphans removes it" };
  }
  if ((await store.loadSandbox(sandbox)) !== null)
    return {
      ...about,
      done: "left",
      text: "its sandbox has a record, which says that it stands elsewhere or has ended",
    };
  if (stray.config.lock === "create")
    return { ...about, done: "left", text: `half made; when no task works on it: pct unlock ${place.vmid}` };
  const restored = await read(context, stray, round);
  const { cut } = stray.stamp.facts ?? {};
  const lacks = cut ? `; ${cut.metadata} metadata and ${cut.services} services had no room in its notes` : "";
  const text = `${restored.record.state}${lacks}`;
  if (round.dryRun) return { ...about, done: "to take in", text };
  const outcome = await restoreSandbox(redis, keys, restored, Date.now());
  if (outcome === "known") return null; // another run of this was faster
  if (outcome !== "ok") return { ...about, done: "left", text: `its ${outcome} belongs to another sandbox by now` };
  log.info({ ...place, sandbox, team }, "record of a sandbox made anew from its container");
  return { ...about, done: "taken in", text };
}

async function read(context: WorkerContext, { place, stamp, config }: Stray, round: Round): Promise<Restored> {
  const { keys, secrets, config: settings } = context;
  const { facts } = stamp;
  const net = config.net0 === undefined ? undefined : parseNet(config.net0);
  const hwaddr = net?.hwaddr?.toUpperCase();
  const { state, uptime, address } = await readStanding(context, { place, config, hwaddr }, round);
  const isTemplate = state === "template";
  const range = settings.PVE_IP_RANGE;
  const leasedIp = !isTemplate && range && net?.ip?.endsWith(`/${range.bits}`) ? net.ip : undefined;
  const hostname = config.hostname ?? `ct-${place.vmid}`;
  const services = isTemplate ? [] : toServices(context, { place, stamp, hostname, address });
  const token = isTemplate ? undefined : (parseEnv(config.env ?? "")[EXECD_TOKEN_ENV] ?? readToken(config.description));
  const now = Date.now();
  const snapshots = await readSnapshots(context, { place, stamp, config }, round);
  const { nodes } = context.inventory.current();
  const replica = { ...toReplica(place, {}, config, nodes), locked: config.lock !== undefined };
  const also: Command[] = [
    ...reserve(keys, place.node, stamp.sandbox, toReservation(config)),
    ...(token === undefined ? [] : [secrets.toCommand(stamp.sandbox, { execToken: token })]),
    ...(isTemplate ? [toTemplateCommand(keys, stamp.team, { id: stamp.sandbox, createdAt: stamp.at, replica })] : []),
    ...snapshots,
  ];
  return {
    record: {
      id: stamp.sandbox,
      operation: stamp.operation,
      team: stamp.team,
      instanceId: facts?.instanceId,
      template: facts?.template ?? "(unknown)",
      source: stamp.template?.source,
      version: stamp.template?.version,
      state,
      ...place,
      hostname,
      address,
      hwaddr,
      leasedIp,
      metadata: facts?.metadata ?? {},
      ttlSeconds: facts?.ttlSeconds,
      ttlAction: facts?.ttlAction ?? "destroy",
      ttlExtendOnUse: facts?.ttlExtendOnUse ?? false,
      idleSeconds: facts?.idleSeconds,
      idleAction: facts?.idleAction ?? "pause",
      wakeOnHttp: facts?.wakeOnHttp ?? false,
      createdAt: stamp.at,
      runningAt: uptime === undefined ? undefined : now - uptime * 1_000,
      services,
    },
    vmid: place.vmid,
    inputHash: facts?.inputHash,
    expiresAt: facts && endOf(facts, now),
    also,
  };
}

/** A use does not change the stamp, so the time from the last one begins anew. */
function endOf({ expiresAt, ttlSeconds = 0, ttlExtendOnUse }: StampFacts, now: number): number | undefined {
  if (expiresAt === undefined) return undefined;
  return Math.max(expiresAt, now + (ttlExtendOnUse ? ttlSeconds * 1_000 : TTL_AT_LEAST_MS));
}

interface Standing {
  state: "running" | "paused" | "stopped" | "template";
  uptime?: number | undefined;
  address?: string | undefined;
}

/** PVE calls a frozen one running; without SSH nobody can tell. */
async function readStanding(
  { pve, shell, machines, config: { sandboxNetworks: allowed } }: WorkerContext,
  { place, config, hwaddr }: Pick<Stray, "place" | "config"> & { hwaddr: string | undefined },
  call: Round,
): Promise<Standing> {
  if (config.template === true) return { state: "template" };
  const lxc = pve.lxc(place.node, place.vmid);
  const { status, uptime } = await lxc.status(call);
  if (status === "stopped") return { state: "stopped" };
  const interfaces = await lxc.interfaces(call);
  const [address] = usableAddresses(interfaces ?? [], hwaddr, { allowed, machines });
  const seen = shell && (await readContainerState(shell, place, call).catch(() => null));
  return { state: seen === "FROZEN" || seen === "FREEZING" ? "paused" : "running", uptime, address };
}

/** One that has no URL as things are now is exposed once it has. */
function toServices(
  { config, inventory }: WorkerContext,
  {
    place,
    stamp,
    hostname,
    address,
  }: Pick<Stray, "place" | "stamp"> & { hostname: string; address?: string | undefined },
): ExposedService[] {
  const { PVE_PUBLIC_DOMAIN: publicDomain, PVE_URL_PATTERN: pattern } = config;
  const dnsSearch = inventory.current().nodes.find(({ name }) => name === place.node)?.dnsSearch;
  const names = { id: stamp.sandbox, instanceId: stamp.facts?.instanceId };
  const about = { ...names, vmid: place.vmid, hostname, dnsSearch, address };
  return (stamp.facts?.services ?? []).flatMap((service) => {
    try {
      return [resolveUrl(service, about, { publicDomain, pattern })];
    } catch (error) {
      if (error instanceof FleetError && ["url_unresolvable", "unsupported"].includes(error.code)) return [];
      throw error;
    }
  });
}

/** Each bears its id in its description. Whether its clones may be linked is not known: they are full. */
async function readSnapshots(
  { pve, keys }: WorkerContext,
  { place, stamp, config }: Stray,
  call: Round,
): Promise<Command[]> {
  const { sandbox, team } = stamp;
  const all = config.template === true ? [] : await pve.lxc(place.node, place.vmid).snapshots(call);
  return all.flatMap(({ name, description, snaptime }) => {
    const id = SnapshotId.safeParse(description?.split(/\s/)[1]);
    if (!id.success) return [];
    const createdAt = (snaptime ?? 0) * 1_000;
    const sizes = { diskBytes: (rootfsGib(config) ?? 0) * GIB, memoryMib: config.memory ?? 512 };
    const { set } = encodeFields({ id: id.data, sandbox, team, ...place, name, createdAt, ...sizes });
    return [
      ["HSET", keys.snapshot(id.data), ...set],
      ["SADD", keys.sandboxSnapshots(sandbox), id.data],
    ];
  });
}
