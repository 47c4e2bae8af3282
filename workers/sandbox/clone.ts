/** A provision's clone: which source, and what is asked of PVE. */

import { FleetError } from "../../shared/errors.ts";
import { type NodeName, SnapshotId, type Vmid } from "../../shared/ids.ts";
import {
  canCloneTo,
  findSources,
  fullStorage,
  isLinked,
  type Source,
  targetStorage,
  withDefaults,
} from "../../shared/placement/choose-node.ts";
import { loadReservation, reserve } from "../../shared/placement/reservation.ts";
import { hasConfigEnv } from "../../shared/state/inventory.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { hostLabel } from "../../shared/urls.ts";
import { teamInventory } from "../placement/team-inventory.ts";
import { toMadeOf } from "../pool/plan.ts";
import type { CloneParams, LxcConfig } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { CLONE, lookAt, type Place } from "./look.ts";
import { makeContainer } from "./make-container.ts";
import { formatDescription, toFacts } from "./stamp.ts";
import { runTask } from "./task.ts";

/** Makes the container of a provision. Returns its config where it was read in passing, else null. */
export const cloneContainer = (run: Run<"provision">, token: string | null): Promise<LxcConfig | null> =>
  makeContainer(run, {
    clone: (place) => cloneFrom(run, place, token),
    refused: (error) => refusedAt(run, error),
  });

/**
 * A node that can't be reached before anything was made on it is no reason to wait for that node; nor is a template there
 * that stays locked, such as by its backup, where another node has one too.
 */
async function refusedAt(run: Run<"provision">, error: unknown): Promise<unknown> {
  const { node } = run.sandbox;
  if (!(error instanceof FleetError) || node === undefined) return error;
  if (error.code === "node_unreachable")
    return new FleetError("node_unavailable", `node ${node} can't be reached`, { cause: error, facts: { node } });
  if (error.code !== "source_locked" || run.operation.lastError?.code !== "source_locked") return error;
  const elsewhere = (await allSources(run)).some((source) => source.node !== node && !source.locked && source.online);
  if (!elsewhere || inputOf(run).node !== undefined) return error;
  return new FleetError("node_unavailable", `the template on ${node} stays locked`, {
    cause: error,
    facts: error.facts,
  });
}

const inputOf = (run: Run<"provision">) => withDefaults(run.input, run.context.config);

async function snapshotOf(run: Run<"provision">) {
  const id = SnapshotId.safeParse(run.input.template);
  return id.success ? run.context.store.loadSnapshot(id.data) : null;
}

async function cloneFrom(run: Run<"provision">, place: Place, token: string | null): Promise<LxcConfig | null> {
  const inventory = run.context.inventory.current();
  const input = inputOf(run);
  const snapshot = await snapshotOf(run);
  const sources = await pickSources(run, await sourcesFor(run, place.node));
  const [first] = sources;
  const full = !isLinked(input, first);
  const snapname = snapshot?.name ?? input.sourceSnapshot;
  let config: LxcConfig | null = null;
  // PVE has written everything but the disks before its task starts: reading it now is off the critical path.
  const readConfig = async () => {
    const sight = await lookAt(run, place, run.call);
    if (sight.is === "ours") config = sight.config;
  };
  const slotName = ({ node, vmid }: Source) => slotOf.replica(node, vmid);
  const request = (slot: string) => {
    const source = sources.find((one) => slotName(one) === slot) ?? first;
    const params = cloneParams(run, place, { source, full, token, snapname });
    return runTask(run, {
      step: CLONE,
      kind: full ? "full_clone" : "linked_clone",
      write: {
        sandbox: {
          state: "cloning",
          hostname: params.hostname ?? null,
          ...(run.sandbox.pool === undefined ? {} : { madeOf: toMadeOf(source) }),
        },
        ...(source.copyOf === undefined
          ? {}
          : { also: [["HSET", run.context.keys.replicaUses, source.vmid, Date.now()]] }),
      },
      start: () => run.context.pve.lxc(source.node, source.vmid).clone(params, run.writing),
      ...(source.node === place.node ? { meanwhile: () => readConfig().catch(() => {}) } : { node: source.node }),
    });
  };
  const storage = targetStorage(input, first);
  const shared = inventory.nodes.some(({ storages }) => storages.some((one) => one.name === storage && one.shared));
  const withReplica = () => run.withSlot(sources.map(slotName), 1, request);
  if (full && shared) await run.withSlot(slotOf.storage(storage), run.context.config.FLEET_STORAGE_SLOTS, withReplica);
  else await withReplica();
  if (full) await noteCopied(run, place.node);
  return config;
}

/** From here on PVE counts what the copy takes, soon. */
async function noteCopied(run: Run<"provision">, node: NodeName): Promise<void> {
  const { redis, keys } = run.context;
  const { copy, ...rest } = await loadReservation(redis, keys, node, run.sandbox.id);
  if (copy === undefined) return;
  await run.write({ also: reserve(keys, node, run.sandbox.id, { ...rest, copy: { ...copy, doneAt: Date.now() } }) });
}

async function allSources(run: Run<"provision">): Promise<Source[]> {
  const { PVE_ALLOW_PRIVILEGED: allowPrivileged } = run.context.config;
  const [snapshot, inventory] = await Promise.all([snapshotOf(run), teamInventory(run)]);
  return findSources({ input: inputOf(run), snapshot }, inventory, { allowPrivileged });
}

/** The sources that may be cloned to this node, by the rules that placed it. Throws `node_unavailable` when none is left. */
async function sourcesFor(run: Run<"provision">, nodeName: NodeName): Promise<Source[]> {
  const input = inputOf(run);
  const node = run.context.inventory.current().nodes.find(({ name }) => name === nodeName);
  const obstacles = run.context.nodes.obstacles();
  const sources = await allSources(run);
  const usable = sources.filter((one) => node && canCloneTo(one, node, input) && !obstacles.has(one.node));
  if (usable.length > 0) return usable;
  throw new FleetError("node_unavailable", `node ${nodeName} has no source of the template left`, {
    facts: { node: nodeName },
  });
}

/** So many lines one clone stands in at once. */
const MOST_LINES = 4;

/**
 * The replicas to clone from, whichever is free first: alike in all that matters to the clone, the one with the shortest
 * line first. One that is locked or refused us comes last, with its like.
 */
async function pickSources(run: Run<"provision">, sources: readonly Source[]): Promise<readonly [Source, ...Source[]]> {
  const { slots, redis, keys } = run.context;
  const [only, ...others] = sources;
  if (only && others.length === 0) return [only];
  const names = sources.map((one) => slotOf.replica(one.node, one.vmid));
  const [taken, waiting] = await Promise.all([
    slots.taken(names),
    Promise.all(names.map((name) => redis.zcard(keys.slotQueue(name)))),
  ]);
  const ranked = sources
    .map((source, at) => ({
      source,
      line: (taken[at] ?? 0) + (waiting[at] ?? 0),
      away: Number(source.node !== run.sandbox.node),
      shy: Number(source.locked || source.vmid === run.operation.lastError?.facts["source"]),
    }))
    .sort((a, b) => a.shy - b.shy || a.line - b.line || a.away - b.away);
  const [first] = ranked;
  if (!first) throw new FleetError("node_unavailable", "there is no source to clone from");
  const { storage, linkable } = first.source;
  const alike = ranked
    .slice(1, MOST_LINES)
    .filter(({ shy, source }) => shy === first.shy && source.storage === storage && source.linkable === linkable);
  return [first.source, ...alike.map(({ source }) => source)];
}

function cloneParams(
  run: Run<"provision">,
  place: Place,
  {
    source,
    full,
    token,
    snapname,
  }: { source: Source; full: boolean; token: string | null; snapname: string | undefined },
): CloneParams {
  const { sandbox } = run;
  const input = inputOf(run);
  const { config, inventory, origin } = run.context;
  const pool = input.pool ?? config.PVE_POOL;
  const storage = full ? fullStorage(input) : undefined;
  const inDescription = token !== null && !hasConfigEnv(inventory.current().version) ? token : null;
  const stamp = {
    fleet: config.FLEET_PREFIX,
    vmid: place.vmid,
    sandbox: sandbox.id,
    operation: run.id,
    team: sandbox.team,
    at: run.operation.acceptedAt,
    origin,
    facts: toFacts(sandbox),
  };
  return {
    newid: place.vmid,
    hostname: hostnameFor(input.hostname ?? input.instanceId ?? config.PVE_HOSTNAME_PATTERN, place.vmid, sandbox.id),
    description: formatDescription(stamp, { token: inDescription, text: input.description }),
    full,
    ...(pool === undefined ? {} : { pool }),
    ...(storage === undefined ? {} : { storage }),
    ...(snapname === undefined ? {} : { snapname }),
    ...(source.node === place.node ? {} : { target: place.node }),
    ...(full && input.bwlimitKib !== undefined ? { bwlimit: input.bwlimitKib } : {}),
  };
}

/** Throws `invalid_input` when the filled pattern is no host name. */
function hostnameFor(pattern: string, vmid: Vmid, id: string): string {
  const hostname = pattern.replaceAll("{vmid}", String(vmid)).replaceAll("{id}", hostLabel(id));
  if (hostname.length <= 63) return hostname;
  throw new FleetError("invalid_input", "hostname: is longer than 63 characters once filled in", {
    facts: { fields: ["hostname"] },
  });
}
