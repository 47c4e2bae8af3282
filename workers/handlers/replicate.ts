import { FleetError } from "../../shared/errors.ts";
import type { TeamId } from "../../shared/ids.ts";
import { ProvisionInput } from "../../shared/jobs/provision.ts";
import { findSources, type Source } from "../../shared/placement/choose-node.ts";
import { reserve } from "../../shared/placement/reservation.ts";
import type { Storage } from "../../shared/state/inventory.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { toCopyCommand } from "../../shared/state/templates.ts";
import { hashConfig, toReplica } from "../inventory/collect.ts";
import { type Way, waysTo } from "../placement/replica-site.ts";
import { teamInventory } from "../placement/team-inventory.ts";
import type { Call, LxcConfig } from "../pve/api.ts";
import { parseMount } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import { convertToTemplate } from "../sandbox/convert.ts";
import { CLONE, mayHaveCloned, ownContainer, type Place } from "../sandbox/look.ts";
import { makeContainer } from "../sandbox/make-container.ts";
import { destroyContainer, releaseCommands } from "../sandbox/release.ts";
import { toReservation } from "../sandbox/reservation.ts";
import { formatDescription, parseStamp } from "../sandbox/stamp.ts";
import { runTask } from "../sandbox/task.ts";
import type { Ending, Handler } from "./handler.ts";
import { onNode } from "./template.ts";

/**
 * PVE moves what a full clone makes to another node where all of its disks are on shared storages. Elsewhere an archive of the
 * template is restored there, over a storage for archives that both nodes have.
 */
export const replicate: Handler<"replicate"> = {
  async run(run) {
    await onNode(run, async () => {
      if (run.sandbox.state === "placing" || run.sandbox.state === "cloning") {
        // What an earlier run asked for is found by its stamp; the original need not be there for that any more.
        const from = mayHaveCloned(run) ? null : await prepare(run);
        await makeContainer(run, {
          clone: async (place) => make(run, from ?? (await prepare(run)), place),
          refused: async (error) => error,
        });
        await run.write({ sandbox: { state: "configuring" } });
      }
      // One that is restored is a template already.
      await convertToTemplate(run);
      await dropArchives(run, run);
    });
    return finish(run);
  },

  async undo(run) {
    const call = run.undoing();
    const destroy = () => destroyContainer(run, { call, writing: call });
    const existed = run.sandbox.state !== "placing" && (await onNode(run, destroy, call));
    const dropped = await dropArchives(run, { call, writing: call });
    return {
      undone: [...(existed ? ["container"] : []), ...(dropped ? ["archive"] : [])],
      write: { sandbox: { state: "failed" }, also: await releaseCommands(run) },
    };
  },
};

interface From {
  source: Source;
  way: Way;
  configHash: string;
  hostname: string;
  /** Whose the original is; everybody's when absent. */
  team: TeamId | undefined;
}

/** Throws what stands in the way before anything is touched. */
async function prepare(run: Run<"replicate">): Promise<From> {
  const { template, node } = run.input;
  const { PVE_ALLOW_PRIVILEGED: allowPrivileged } = run.context.config;
  const inventory = await teamInventory(run);
  const input = ProvisionInput.parse({ template, clone: "full" });
  const sources = findSources({ input, snapshot: null }, inventory, { allowPrivileged });
  const there = sources.find((one) => one.node === node);
  if (there) {
    throw new FleetError("template_exists", `node ${node} has a replica of ${template} already, ${there.vmid}`, {
      facts: { template: String(template), node, vmid: there.vmid },
    });
  }
  const source = sources.find((one) => one.copyOf === undefined && one.online);
  if (!source)
    throw new FleetError("node_unreachable", `no node that is online has template ${template}`, {
      facts: { template: String(template) },
    });
  const way = wayFor(run, source);
  const config = await run.context.pve.lxc(source.node, source.vmid).config(run.call);
  if (way.archive !== undefined) refuseLeftOut(run, source, config);
  const team = inventory.replicas.find(({ vmid }) => vmid === source.vmid)?.owner?.team;
  return { source, way, configHash: hashConfig(config), hostname: config.hostname ?? String(template), team };
}

/** A replica would have such a disk, empty (PVE::LXC::Config::mountpoint_backup_enabled). */
function refuseLeftOut({ input }: Run<"replicate">, { node, vmid }: Source, config: LxcConfig): void {
  const disks = Object.entries(config).filter(
    ([key, value]) => /^mp\d+$/.test(key) && !parseMount(String(value)).backup,
  );
  if (disks.length === 0) return;
  const names = disks.map(([key]) => key);
  throw new FleetError(
    "unsupported",
    `template ${input.template} has disks that its archive would be without; give them backup=1: ${names.join(", ")} of ${vmid}`,
    { facts: { node, vmid, disks: names } },
  );
}

function wayFor({ input, context }: Run<"replicate">, source: Source): Way {
  const ways = waysTo(context.inventory.current(), source, input.node);
  const found = input.storage === undefined ? ways[0] : ways.find(({ storage }) => storage.name === input.storage);
  if (found) return found;
  const wanted = input.storage ?? "storage";
  throw new FleetError(
    "storage_not_found",
    `storage: ${source.node} and ${input.node} share no active ${wanted} for containers, over which PVE could bring a clone there, nor one for backups`,
    { facts: { storage: input.storage ?? null, nodes: [source.node, input.node] } },
  );
}

async function make(run: Run<"replicate">, from: From, place: Place): Promise<null> {
  const { pve, config, origin } = run.context;
  const { source, way, hostname, configHash, team } = from;
  const { PVE_POOL: pool } = config;
  const stamp = {
    fleet: config.FLEET_PREFIX,
    vmid: place.vmid,
    sandbox: run.sandbox.id,
    operation: run.id,
    team: run.sandbox.team,
    at: run.operation.acceptedAt,
    origin,
    copyOf: { vmid: source.vmid, configHash, ...(team === undefined ? {} : { team }) },
  };
  const params = {
    hostname,
    description: formatDescription(stamp, { token: null, text: undefined }),
    storage: way.storage.name,
    ...(pool === undefined ? {} : { pool }),
  };
  const step = { step: CLONE, write: { sandbox: { state: "cloning" as const, hostname } } };
  if (way.archive !== undefined) {
    const ostemplate = (await findArchives(run, run.call))[0] ?? (await saveArchive(run, source, way.archive));
    const restored = { vmid: place.vmid, ostemplate, restore: true, unique: true, ...params };
    const start = () => pve.createLxc(place.node, restored, run.writing);
    await onStorage(run, way.storage, () => runTask(run, { ...step, kind: "restore", type: "vzrestore", start }));
    return null;
  }
  const cloned = { newid: place.vmid, full: true, target: place.node, ...params };
  const start = () => pve.lxc(source.node, source.vmid).clone(cloned, run.writing);
  await onStorage(run, way.storage, () =>
    run.withSlot(slotOf.replica(source.node, source.vmid), 1, () =>
      runTask(run, { ...step, kind: "full_clone", node: source.node, start }),
    ),
  );
  return null;
}

function onStorage(run: Run, { name, shared }: Pick<Storage, "name" | "shared">, work: () => Promise<void>) {
  return shared ? run.withSlot(slotOf.storage(name), run.context.config.FLEET_STORAGE_SLOTS, work) : work();
}

/** Its notes say whose it is, so that it is found again whatever becomes of the run. */
const notesOf = (run: Run<"replicate">) => `sandbox-fleet ${run.id}`;

/** While it is saved, PVE lets nobody clone it. */
async function saveArchive(run: Run<"replicate">, { node, vmid }: Source, storage: string): Promise<string> {
  const { pve } = run.context;
  const archive = {
    step: "archive",
    kind: "backup",
    type: "vzdump",
    node,
    vmid,
    write: { operation: { archive: { storage, vmid } } },
    start: () => pve.backup(node, { vmid, storage, notes: notesOf(run) }, run.writing),
  };
  await onStorage(run, { name: storage, shared: true }, () =>
    run.withSlot(slotOf.replica(node, vmid), 1, () => runTask(run, archive)),
  );
  const [volid] = await findArchives(run, run.call);
  if (volid !== undefined) return volid;
  throw new FleetError("task_failed", `PVE reports ${vmid} as saved to ${storage}, but there is no archive`, {
    facts: { node, vmid, storage },
  });
}

async function findArchives(run: Run<"replicate">, call: Call): Promise<string[]> {
  const { archive } = run.operation;
  if (archive === undefined) return [];
  const { storage, vmid } = archive;
  const all = await run.context.pve.backups(run.input.node, storage, vmid, call);
  return all.filter(({ notes }) => notes?.trim() === notesOf(run)).map(({ volid }) => volid);
}

/** Whether there was one. */
async function dropArchives(run: Run<"replicate">, { call, writing }: { call: Call; writing: Call }): Promise<boolean> {
  const { pve, tasks } = run.context;
  const { archive } = run.operation;
  if (archive === undefined) return false;
  const found = await findArchives(run, call);
  for (const volid of found) {
    await pve.unprotect(run.input.node, archive.storage, volid, writing);
    const upid = await pve.deleteVolume(run.input.node, archive.storage, volid, writing);
    if (upid !== null) await tasks.wait(upid, { signal: call.signal, kind: "delete_volume" });
  }
  return found.length > 0;
}

async function finish(run: Run<"replicate">): Promise<Ending<"replicate">> {
  const { keys, inventory } = run.context;
  const { id } = run.sandbox;
  const { place, config } = await ownContainer(run);
  const copyOf = parseStamp(config.description, place.vmid)?.copyOf;
  if (copyOf === undefined)
    throw new FleetError("internal", "the replica's stamp does not say what it is a replica of", {
      facts: { ...place },
    });
  const replica = { ...toReplica(place, {}, config, inventory.current().nodes), locked: false };
  return {
    result: {
      replicaId: id,
      operationId: run.id,
      of: copyOf.vmid,
      ...place,
      storage: replica.storage,
      timings: run.timings,
    },
    write: {
      sandbox: { state: "template" },
      also: [
        toCopyCommand(keys, { id, createdAt: Date.now(), replica }),
        ...reserve(keys, place.node, id, toReservation({ ...config, template: true })),
      ],
    },
  };
}
