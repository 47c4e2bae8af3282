/** The cluster as one team may use it: of the templates that the fleet made its own alone, the newest at once. Pure. */
import type { Inventory } from "../state/inventory.ts";
import type { Template } from "../state/templates.ts";

/**
 * The list of a cluster lags, so what it does not show yet is taken from the templates' own records; and what no record
 * knows is no template for anybody: another team's, one half made, or one that has been deleted.
 */
export function toTeamInventory(inventory: Inventory, templates: readonly Template[]): Inventory {
  const seen = new Map(inventory.replicas.flatMap((one) => (one.owner ? [[one.owner.sandbox, one] as const] : [])));
  const isOnline = (node: string) => inventory.nodes.some(({ name, online }) => name === node && online);
  const own = [...templates]
    .sort((a, b) => b.createdAt - a.createdAt)
    .map(({ id, replica }) => seen.get(id) ?? { ...replica, online: isOnline(replica.node) });
  return { ...inventory, replicas: [...own, ...inventory.replicas.filter(({ owner }) => owner === undefined)] };
}
