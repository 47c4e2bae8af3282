/** Where a container can be moved to: checked before anything is touched. */
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { NO_LOAD, type Promises, whyNoRoom } from "../../shared/placement/capacity.ts";
import { loadWeight } from "../../shared/placement/choose-node.ts";
import type { NodeInventory } from "../../shared/state/inventory.ts";
import { toLimits } from "../placement/limits.ts";
import { factsOf } from "../placement/node-facts.ts";
import type { LxcConfig } from "../pve/api.ts";
import { parseMount, storageOf } from "../pve/config-format.ts";
import type { Run } from "../run/run.ts";
import type { Place } from "./look.ts";
import { toReservation } from "./reservation.ts";

interface Disk {
  volume: string;
  storage: string;
  type: string;
  shared: boolean;
}

/**
 * The node that was asked for, or the one with the least to do and the most room. Throws `not_movable` where PVE would
 * refuse, or no node can take it; `invalid_input` for a node that there is not.
 */
export async function chooseTarget(
  run: Run<"migrate">,
  { place, config }: { place: Place; config: LxcConfig },
): Promise<NodeName> {
  const { context, input, sandbox } = run;
  const { nodes, at } = context.inventory.current();
  const source = nodes.find(({ name }) => name === place.node);
  const disks = source === undefined ? [] : disksOf(source, config);
  await refuseStuck(run, place, disks);
  if (input.target !== undefined && !nodes.some(({ name }) => name === input.target)) {
    const known = nodes.map(({ name }) => name).join(", ");
    throw new FleetError("invalid_input", `target: there is no node ${input.target}; nodes are ${known}`, {
      facts: { fields: ["target"] },
    });
  }
  const { facts } = await factsOf(context, "now");
  const limits = toLimits(context.config);
  const promises: Promises = { ...facts, readAt: at };
  const { memoryMib, disks: sizes } = toReservation(config);
  const refusals: string[] = [];
  const fitting = nodes.filter((node) => {
    if (node.name === place.node || (input.target ?? node.name) !== node.name) return false;
    const demand = { memoryMib, disks: landing(disks, sizes, input.targetStorage), copiedGib: 0 };
    const [storage = ""] = Object.keys(demand.disks);
    const refusal =
      (node.online ? null : "offline") ??
      facts.obstacles.get(node.name) ??
      whyNoStorage(node, disks, input.targetStorage) ??
      whyNoRoom({ node, storage, mounts: [], demand }, promises, limits);
    if (refusal !== null) refusals.push(`${node.name}: ${refusal}`);
    return refusal === null;
  });
  const weightOf = (node: NodeInventory) => loadWeight(facts.loads.get(node.name) ?? NO_LOAD, node);
  const [best] = fitting.toSorted((a, b) => weightOf(a) - weightOf(b));
  if (best) return best.name;
  throw new FleetError(
    "not_movable",
    `no node can take sandbox ${sandbox.id}: ${refusals.join("; ") || "there is no other"}`,
    {
      facts: { sandbox: sandbox.id, ...place },
    },
  );
}

function disksOf(node: NodeInventory, config: LxcConfig): Disk[] {
  return Object.entries(config)
    .filter(([key]) => key === "rootfs" || /^mp\d+$/.test(key))
    .flatMap(([, value]) => {
      const { volume } = parseMount(String(value));
      const storage = storageOf(volume);
      const known = node.storages.find(({ name }) => name === storage);
      return storage === undefined
        ? []
        : [{ volume, storage, type: known?.type ?? "", shared: known?.shared === true }];
    });
}

/** What PVE itself refuses to copy, in its own task's log only (PVE::LXC::Migrate::phase1). */
async function refuseStuck(run: Run<"migrate">, place: Place, disks: readonly Disk[]): Promise<void> {
  const local = disks.filter(({ shared }) => !shared);
  const facts = { sandbox: run.sandbox.id, ...place };
  const linked = local.find(({ volume }) => /:base-[^/]+\//.test(volume));
  if (linked !== undefined) {
    const text = `its disk ${linked.volume} is a linked clone on a storage that nodes don't share; PVE moves full clones only`;
    throw new FleetError("not_movable", text, { facts });
  }
  const fixed = local.find(({ type }) => type !== "zfspool" && type !== "btrfs");
  if (fixed === undefined) return;
  const snapshots = await run.context.pve.lxc(place.node, place.vmid).snapshots(run.call);
  if (snapshots.length === 0) return;
  const names = snapshots.map(({ name }) => name);
  throw new FleetError(
    "not_movable",
    `it has snapshots, which PVE does not move from ${fixed.type || "this"} storage ${fixed.storage}; delete them first: ${names.join(", ")}`,
    { facts: { ...facts, snapshots: names } },
  );
}

function whyNoStorage(node: NodeInventory, disks: readonly Disk[], mapped: string | undefined): string | null {
  for (const { storage, shared } of disks) {
    const wanted = shared ? storage : (mapped ?? storage);
    const there = node.storages.find(({ name }) => name === wanted);
    if (there === undefined) return `has no storage ${wanted}`;
    if (!there.active) return `storage ${wanted} is not active`;
    if (!there.rootdir) return `storage ${wanted} holds no containers`;
  }
  return null;
}

/** What it will take of the storages of its next node; those that it stays on are promised already. */
function landing(
  disks: readonly Disk[],
  sizes: Readonly<Record<string, number>>,
  mapped: string | undefined,
): Record<string, number> {
  const there: Record<string, number> = {};
  for (const [storage, gib] of Object.entries(sizes)) {
    if (disks.some((one) => one.storage === storage && one.shared)) continue;
    const wanted = mapped ?? storage;
    there[wanted] = (there[wanted] ?? 0) + gib;
  }
  return there;
}
