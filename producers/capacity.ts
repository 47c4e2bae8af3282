/** How many more sandboxes there is room for. */
import { FleetError } from "../shared/errors.ts";
import { SnapshotId, type TeamId } from "../shared/ids.ts";
import { type JobInput, parseInput } from "../shared/jobs/index.ts";
import { NO_LOAD, type NodeLoad, toLoad } from "../shared/placement/capacity.ts";
import { withDefaults } from "../shared/placement/choose-node.ts";
import { type FleetRoom, howMany, type Supplies } from "../shared/placement/how-many.ts";
import { parseReservation } from "../shared/placement/reservation.ts";
import { toTeamInventory } from "../shared/placement/team-inventory.ts";
import { loadInventory, type PlacementLimits } from "../shared/state/inventory.ts";
import { toObstacles } from "../shared/state/nodes.ts";
import { loadCopies, loadTemplates } from "../shared/state/templates.ts";
import type { Parts } from "./parts.ts";

/**
 * How many more of a provision fit, where, and what limits it, by the rules that place it. What is asked of PVE at that
 * moment may differ: workers read the cluster every few seconds. Throws `node_unreachable` before any worker has, and what
 * the provision itself would be refused with: `template_not_found`, `invalid_input`, ….
 */
export async function capacity(parts: Parts, raw: JobInput<"provision">): Promise<FleetRoom> {
  const { link, keys } = parts;
  const provision = parseInput("provision", raw);
  const team = parts.team ?? provision.team;
  const inventory = await link.request((redis) => loadInventory(redis, keys));
  const limits = inventory?.limits;
  if (!inventory || !limits)
    throw new FleetError("node_unreachable", "no worker has told of the cluster yet; start one");
  const input = withDefaults(provision, { PVE_NODE: limits.node, PVE_STORAGE: limits.storage });
  const wanted = SnapshotId.safeParse(input.template);
  const [snapshot, templates, copies, states, loads, supplies] = await Promise.all([
    wanted.success ? link.request(() => parts.store.loadSnapshot(wanted.data)) : null,
    team === undefined ? [] : link.request((redis) => loadTemplates(redis, keys, team, parts.passOver)),
    link.request((redis) => loadCopies(redis, keys, parts.passOver)),
    link.request(() => parts.nodeStates.load()),
    loadLoads(
      parts,
      inventory.nodes.map(({ name }) => name),
    ),
    loadSupplies(parts, limits, { team, leases: input.network?.ip }),
  ]);
  if (wanted.success && (!snapshot || (team !== undefined && snapshot.team !== team))) {
    throw new FleetError("snapshot_not_found", `there is no snapshot ${wanted.data}`, {
      facts: { snapshot: wanted.data },
    });
  }
  const facts = { loads, obstacles: toObstacles(states), settings: states.settings };
  return howMany({ input, snapshot }, toTeamInventory(inventory, templates, { copies, team }), facts, limits, supplies);
}

/** What each node has promised; not what waits in its queue. */
export async function loadLoads(
  { link, keys }: Parts,
  nodes: readonly string[],
): Promise<ReadonlyMap<string, NodeLoad>> {
  const now = Date.now();
  const loads = await link.request((redis) =>
    Promise.all(nodes.map(async (node) => toLoad((await redis.hvals(keys.reserved(node))).map(parseReservation), now))),
  );
  return new Map(nodes.map((node, index) => [node, { ...NO_LOAD, ...loads[index] }]));
}

async function loadSupplies(
  { link, keys, quotas }: Parts,
  { vmids: { first, last }, addresses }: PlacementLimits,
  { team, leases }: { team: TeamId | undefined; leases: string | undefined },
): Promise<Supplies> {
  const [leased, ips] = await link.request((redis) => Promise.all([redis.hkeys(keys.vmids), redis.hlen(keys.ips)]));
  const inRange = leased.filter((vmid) => Number(vmid) >= first && Number(vmid) <= last).length;
  const needsAddress = addresses !== undefined && (leases === undefined || leases === "lease");
  const quota = team === undefined ? null : await link.request(() => quotas.look(team));
  const most = quota?.limits.sandboxes;
  return {
    "VMIDs (PVE_VMID_RANGE)": last - first + 1 - inRange,
    ...(needsAddress ? { "addresses (PVE_IP_RANGE)": addresses - ips } : {}),
    ...(quota && most !== undefined && most !== null ? { [`quota of ${team}`]: most - quota.used.sandboxes } : {}),
  };
}
