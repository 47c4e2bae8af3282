/** The clone step: which source, which VMID, and never two containers for one operation. */
import { FleetError } from "../../shared/errors.ts";
import { SnapshotId, type Vmid } from "../../shared/ids.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { hasConfigEnv } from "../../shared/state/inventory.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { hostLabel } from "../../shared/urls.ts";
import { findSources, isLinked, type Source, withDefaults } from "../placement/choose-node.ts";
import type { CloneParams } from "../pve/api.ts";
import type { Run } from "../run/run.ts";
import { lookAt, type Place } from "./look.ts";
import { formatDescription } from "./stamp.ts";
import { runTask } from "./task.ts";

/** A locked or half-made clone is looked at this often while its task is unknown to us. */
const LOOK_MS = 250;
/** A lock whose task we can't see is given this long. */
const LOCK_PATIENCE_MS = 30_000;

/**
 * Makes the sandbox's container, or adopts the one that an earlier run made.
 * The same VMID is asked for again after an unknown outcome: PVE's claim of it is atomic, so at most one exists.
 */
export async function cloneContainer(run: Run<"provision">, token: string | null): Promise<Place> {
  const node = run.sandbox.node;
  if (node === undefined) throw new FleetError("node_unavailable", "the sandbox has no node yet");
  const snapshot = await snapshotOf(run);
  const inventory = run.context.inventory.current();
  const sources = findSources({ input: inputOf(run), snapshot }, inventory, {
    allowPrivileged: run.context.config.PVE_ALLOW_PRIVILEGED,
  }).filter((one) => one.node === node || one.shared);
  while (true) {
    const vmid = run.sandbox.vmid ?? (await run.leaseVmid());
    const place = { node, vmid };
    const adopted = run.operation.step?.name === "clone" ? await adopt(run, place) : "missing";
    if (adopted === "ours") return place;
    if (adopted === "missing") {
      try {
        await cloneFrom(run, place, {
          sources,
          token,
          snapname: snapshot?.name ?? run.input.sourceSnapshot,
          inventory,
        });
        return place;
      } catch (error) {
        if (!(error instanceof FleetError) || error.code !== "vmid_taken") throw error;
        if ((await adopt(run, place)) === "ours") return place; // an earlier request of ours, executed late
      }
    }
    run.log.info({ vmid }, "VMID is taken by somebody else; leasing the next");
    await run.leaseVmid();
    await run.begin("lease");
  }
}

const inputOf = (run: Run<"provision">) => withDefaults(run.input, run.context.config);

async function snapshotOf(run: Run<"provision">) {
  const id = SnapshotId.safeParse(run.input.template);
  return id.success ? run.context.store.loadSnapshot(id.data) : null;
}

/** Waits until what stands at the VMID is whole, when it is ours. */
async function adopt(run: Run<"provision">, place: Place): Promise<"ours" | "missing" | "foreign"> {
  if (run.operation.step?.upid !== undefined) {
    try {
      await runTask(run, {
        step: "clone",
        kind: "clone",
        start: () => Promise.reject(new Error("recorded tasks are not started again")),
      });
    } catch (error) {
      // The container itself says how the clone ended.
      if (!(error instanceof FleetError) || !["task_lost", "task_failed"].includes(error.code)) throw error;
    }
  }
  const patience = performance.now() + LOCK_PATIENCE_MS;
  while (true) {
    const sight = await lookAt(run, place, run.call);
    if (sight.is !== "ours") return sight.is;
    if (sight.config.lock === undefined) return "ours";
    if (performance.now() > patience) {
      throw new FleetError(
        "container_locked",
        `container ${place.vmid} on ${place.node} stays locked (${sight.config.lock})`,
        { facts: { ...place } },
      );
    }
    await run.context.wake.next(["abort"], { timeoutMs: LOOK_MS, signal: run.signal });
  }
}

interface CloneWay {
  sources: readonly Source[];
  token: string | null;
  snapname: string | undefined;
  inventory: Inventory;
}

async function cloneFrom(run: Run<"provision">, place: Place, way: CloneWay): Promise<void> {
  const source = await pickSource(run, way.sources);
  const full = !isLinked(inputOf(run), source);
  const params = cloneParams(run, place, { source, full, token: way.token, snapname: way.snapname });
  const request = () =>
    runTask(run, {
      step: "clone",
      kind: full ? "full_clone" : "linked_clone",
      write: { sandbox: { state: "cloning", hostname: params.hostname ?? null } },
      start: () => run.context.pve.lxc(source.node, source.vmid).clone(params, run.call),
    });
  const storage = inputOf(run).storage ?? source.storage;
  const shared = way.inventory.nodes.some(({ storages }) => storages.some((one) => one.name === storage && one.shared));
  const withReplica = () => run.withSlot(slotOf.replica(source.node, source.vmid), 1, request);
  if (full && shared) await run.withSlot(slotOf.storage(storage), run.context.config.FLEET_STORAGE_SLOTS, withReplica);
  else await withReplica();
}

/** The replica whose clone slot is free, else the one with the shortest line. */
async function pickSource(run: Run<"provision">, sources: readonly Source[]): Promise<Source> {
  const { slots, redis, keys } = run.context;
  const names = sources.map((one) => slotOf.replica(one.node, one.vmid));
  const [taken, waiting] = await Promise.all([
    slots.taken(names),
    Promise.all(names.map((name) => redis.zcard(keys.slotQueue(name)))),
  ]);
  const ranked = sources
    .map((source, at) => ({
      source,
      line: (taken[at] ?? 0) + (waiting[at] ?? 0),
      away: source.node === run.sandbox.node ? 0 : 1,
    }))
    .sort((a, b) => a.line - b.line || a.away - b.away);
  const [first] = ranked;
  if (!first) throw new FleetError("node_unavailable", `node ${run.sandbox.node} has lost its replica of the template`);
  return first.source;
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
  const { config, inventory } = run.context;
  const pool = input.pool ?? config.PVE_POOL;
  const storage = full ? input.storage : undefined;
  const inDescription = token !== null && !hasConfigEnv(inventory.current().version) ? token : null;
  const stamp = {
    fleet: config.FLEET_PREFIX,
    vmid: place.vmid,
    sandbox: sandbox.id,
    operation: run.id,
    team: sandbox.team,
  };
  return {
    newid: place.vmid,
    hostname: hostnameFor(input.hostname ?? config.PVE_HOSTNAME_PATTERN, place.vmid, sandbox.id),
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
