/** The cluster as one team may use it: of the templates that the fleet made its own alone, the newest at once. Pure. */
import type { TeamId } from "../ids.ts";
import type { Inventory, Replica } from "../state/inventory.ts";
import type { Template } from "../state/templates.ts";

/**
 * The list of a cluster lags, so what it does not show yet is taken from the templates' own records; and what no record
 * knows is no template for anybody: another team's, one half made, or one that has been deleted.
 */
export function toTeamInventory(
  inventory: Inventory,
  templates: readonly Template[],
  { copies, team }: { copies: readonly Template[]; team: TeamId | undefined },
): Inventory {
  const seen = new Map(inventory.replicas.flatMap((one) => (one.owner ? [[one.owner.sandbox, one] as const] : [])));
  const isOnline = (node: string) => inventory.nodes.some(({ name, online }) => name === node && online);
  const toSeen = ({ id, replica }: Template) => seen.get(id) ?? { ...replica, online: isOnline(replica.node) };
  const own = [...templates].sort((a, b) => b.createdAt - a.createdAt).map(toSeen);
  const usable = [...own, ...inventory.replicas.filter(({ owner }) => owner === undefined)];
  // Whoever may use a template may use its replicas; one whose original has gone stands for that.
  const mayUse = ({ copyOf }: Replica) =>
    usable.some(({ vmid }) => vmid === copyOf?.vmid) ||
    (!inventory.replicas.some(({ vmid }) => vmid === copyOf?.vmid) &&
      (copyOf?.team === undefined || copyOf.team === team));
  return { ...inventory, replicas: [...usable, ...copies.map(toSeen).filter(mayUse)] };
}
