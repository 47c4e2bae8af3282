import { FleetError } from "../../shared/errors.ts";
import type { TeamId } from "../../shared/ids.ts";
import { ProvisionInput } from "../../shared/jobs/provision.ts";
import { canLink, findSources, type Source } from "../../shared/placement/choose-node.ts";
import { reserve } from "../../shared/placement/reservation.ts";
import type { Storage } from "../../shared/state/inventory.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { toCopyCommand } from "../../shared/state/templates.ts";
import { hashConfig, toReplica } from "../inventory/collect.ts";
import { teamInventory } from "../placement/place.ts";
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

/** PVE moves what a full clone makes to another node where all of its disks are on shared storages. */
export const replicate: Handler<"replicate"> = {
  async run(run) {
    await onNode(run, async () => {
      if (run.sandbox.state === "placing" || run.sandbox.state === "cloning") {
        // What an earlier run asked for is found by its stamp; the original need not be there for that any more.
        const from = mayHaveCloned(run) ? null : await prepare(run);
        await makeContainer(run, {
          clone: async (place) => clone(run, from ?? (await prepare(run)), place),
          refused: async (error) => error,
        });
        await run.write({ sandbox: { state: "configuring" } });
      }
      await convertToTemplate(run);
    });
    return finish(run);
  },

  async undo(run) {
    const call = run.undoing();
    const destroy = () => destroyContainer(run, { call, writing: call });
    const existed = run.sandbox.state !== "placing" && (await onNode(run, destroy, call));
    return {
      undone: existed ? ["container"] : [],
      write: { sandbox: { state: "failed" }, also: await releaseCommands(run) },
    };
  },
};

interface From {
  source: Source;
  storage: Storage;
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
  const storage = storageFor(run, source);
  const config = await run.context.pve.lxc(source.node, source.vmid).config(run.call);
  const team = inventory.replicas.find(({ vmid }) => vmid === source.vmid)?.owner?.team;
  return { source, storage, configHash: hashConfig(config), hostname: config.hostname ?? String(template), team };
}

function storageFor({ input, context }: Run<"replicate">, { node: from, storage: own }: Source): Storage {
  const { nodes } = context.inventory.current();
  const of = (node: string) =>
    (nodes.find(({ name }) => name === node)?.storages ?? []).filter((one) => one.active && one.rootdir && one.shared);
  const common = of(input.node).filter(({ name }) => of(from).some((one) => one.name === name));
  const ranked = [...common].sort(
    (a, b) => Number(b.name === own) - Number(a.name === own) || Number(canLink(b.type)) - Number(canLink(a.type)),
  );
  const found = input.storage === undefined ? ranked[0] : common.find(({ name }) => name === input.storage);
  if (found) return found;
  const wanted = input.storage ?? "storage";
  throw new FleetError(
    "storage_not_found",
    `storage: ${from} and ${input.node} share no active ${wanted} for containers, over which PVE could bring a clone there`,
    { facts: { storage: input.storage ?? null, nodes: [from, input.node] } },
  );
}

async function clone(
  run: Run<"replicate">,
  { source, storage, configHash, hostname, team }: From,
  place: Place,
): Promise<null> {
  const { pve, config, origin } = run.context;
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
    newid: place.vmid,
    full: true,
    target: place.node,
    storage: storage.name,
    hostname,
    description: formatDescription(stamp, { token: null, text: undefined }),
    ...(pool === undefined ? {} : { pool }),
  };
  const request = () =>
    runTask(run, {
      step: CLONE,
      kind: "full_clone",
      node: source.node,
      write: { sandbox: { state: "cloning", hostname } },
      start: () => pve.lxc(source.node, source.vmid).clone(params, run.writing),
    });
  await run.withSlot(slotOf.storage(storage.name), config.FLEET_STORAGE_SLOTS, () =>
    run.withSlot(slotOf.replica(source.node, source.vmid), 1, request),
  );
  return null;
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
