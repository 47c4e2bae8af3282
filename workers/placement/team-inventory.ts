import { toTeamInventory } from "../../shared/placement/team-inventory.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { loadCopies, loadTemplates } from "../../shared/state/templates.ts";
import { passOver } from "../pass-over.ts";
import type { Run } from "../run/run.ts";

/** The cluster as the team of a provision may use it. */
export async function teamInventory({ context, operation }: Run): Promise<Inventory> {
  const [templates, copies] = await Promise.all([
    loadTemplates(context.redis, context.keys, operation.team, passOver(context)),
    loadCopies(context.redis, context.keys, passOver(context)),
  ]);
  return toTeamInventory(context.inventory.current(), templates, { copies, team: operation.team });
}
