import { toTeamInventory } from "../../shared/placement/team-inventory.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { loadCopies, loadTemplates } from "../../shared/state/templates.ts";
import type { Run } from "../run/run.ts";

/** The cluster as the team of a provision may use it. */
export async function teamInventory({ context, operation }: Run): Promise<Inventory> {
  const [templates, copies] = await Promise.all([
    loadTemplates(context.redis, context.keys, operation.team),
    loadCopies(context.redis, context.keys),
  ]);
  return toTeamInventory(context.inventory.current(), templates, { copies, team: operation.team });
}
