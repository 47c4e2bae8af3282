/** The container that a build begins with: of an OS template archive, or a full clone of a template. */
import { FleetError } from "../../shared/errors.ts";
import { ProvisionInput } from "../../shared/jobs/provision.ts";
import { canLink, findSources } from "../../shared/placement/choose-node.ts";
import { slotOf } from "../../shared/state/slots.ts";
import { teamInventory } from "../placement/team-inventory.ts";
import { formatNet } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import { cloneContainer } from "./clone.ts";
import { configureClone, desiredNet } from "./configure-clone.ts";
import { toDescription } from "./convert.ts";
import { closeFirewall } from "./firewall.ts";
import { CLONE, type Place } from "./look.ts";
import { makeContainer } from "./make-container.ts";
import { runTask } from "./task.ts";

/** PVE's own, of every installation. */
const USUAL_BRIDGE = "vmbr0";
const USUAL_DISK_GIB = 4;

export async function makeBase(run: Run<"build">, token: string | null): Promise<void> {
  if ("template" in run.input.from) {
    await cloneContainer(asProvision(run), token);
    return;
  }
  const { archive } = run.input.from;
  await makeContainer(run, { clone: (place) => create(run, place, archive), refused: async (error) => error });
}

/** Its resources and network as asked for, and the token of its exec daemon, if any. */
export async function configureBase(run: Run<"build">, token: string | null): Promise<void> {
  await configureClone(asProvision(run), token, null);
  await closeFirewall(asProvision(run));
}

/** What a build has in common with a provision is done as one. */
function asProvision(run: Run<"build">): Run<"provision"> {
  const { from, name, description, storage, network, nesting, ...rest } = run.input;
  const { cores, cpulimit, cpuunits, memoryMib, swapMib, diskGib } = rest;
  const input = ProvisionInput.parse({
    template: "template" in from ? from.template : name,
    clone: "full",
    hostname: name,
    description,
    storage,
    network,
    cores,
    cpulimit,
    cpuunits,
    memoryMib,
    swapMib,
    diskGib,
    ...(nesting === undefined ? {} : { features: { nesting } }),
  });
  return Object.create(run, { input: { value: input } }) as Run<"provision">; // the same run, with that one's input
}

/** Throws what stands in the way before anything is touched. */
export async function checkBase(run: Run<"build">): Promise<void> {
  const { node } = run.sandbox;
  const { from } = run.input;
  if (node === undefined) throw new FleetError("node_unavailable", "the build has no node");
  if ("template" in from) {
    const { input } = asProvision(run);
    const { PVE_ALLOW_PRIVILEGED: allowPrivileged } = run.context.config;
    const sources = findSources({ input, snapshot: null }, await teamInventory(asProvision(run)), { allowPrivileged });
    if (sources.some((one) => one.node === node || one.shared)) return;
    throw new FleetError("template_not_found", `node ${node} has no replica of ${from.template}`, {
      facts: { template: String(from.template), node },
    });
  }
  storageFor(run);
  const storage = from.archive.slice(0, from.archive.indexOf(":"));
  const archives = await run.context.pve.volumes(node, storage, "vztmpl", run.call);
  if (archives.includes(from.archive)) return;
  const known = archives.length === 0 ? "it has none; see pveam on the node" : `it has ${archives.join(", ")}`;
  throw new FleetError("template_not_found", `from.archive: ${node} has no ${from.archive}; ${known}`, {
    facts: { archive: from.archive, node },
  });
}

/** Where its disk goes: as asked for or set, else a storage of the node that can clone linked. */
function storageFor({ input, sandbox, context }: Run<"build">): { name: string; shared: boolean } {
  const wanted = input.storage ?? context.config.PVE_STORAGE;
  const storages = context.inventory.current().nodes.find(({ name }) => name === sandbox.node)?.storages ?? [];
  const usable = storages.filter(({ active, rootdir }) => active && rootdir);
  const found =
    wanted === undefined
      ? (usable.find(({ type }) => canLink(type)) ?? usable[0])
      : usable.find(({ name }) => name === wanted);
  if (found) return found;
  throw new FleetError("storage_not_found", `storage: ${sandbox.node} has no ${wanted ?? "storage"} for containers`, {
    facts: { storage: wanted ?? null, node: sandbox.node ?? null },
  });
}

async function create(run: Run<"build">, place: Place, ostemplate: string): Promise<null> {
  const { config, pve } = run.context;
  const { name: hostname, memoryMib, swapMib, cores, diskGib, nesting, network = {} } = run.input;
  const storage = storageFor(run);
  const bridge = network.bridge ?? config.PVE_BRIDGE ?? USUAL_BRIDGE;
  const net = desiredNet(undefined, { ip: "dhcp", ...network, bridge }, config, undefined);
  const params = {
    vmid: place.vmid,
    ostemplate,
    hostname,
    description: toDescription(run, place),
    unprivileged: true,
    rootfs: `${storage.name}:${diskGib ?? USUAL_DISK_GIB}`,
    memory: memoryMib,
    swap: swapMib,
    cores,
    pool: config.PVE_POOL,
    ...(net === null ? {} : { net0: formatNet(net) }),
    ...(nesting === undefined ? {} : { features: `nesting=${Number(nesting)}` }),
  };
  const request = () =>
    runTask(run, {
      step: CLONE,
      kind: "create",
      type: "vzcreate",
      write: { sandbox: { state: "cloning", hostname } },
      start: () => pve.createLxc(place.node, params, run.writing),
    });
  if (storage.shared) await run.withSlot(slotOf.storage(storage.name), config.FLEET_STORAGE_SLOTS, request);
  else await request();
  return null;
}
