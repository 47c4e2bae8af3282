/** Pools of templates: how many sandboxes are made before they are asked for. */
import { FleetError } from "../shared/errors.ts";
import { POOL_TEAM } from "../shared/ids.ts";
import { sayIssue } from "../shared/jobs/problems.ts";
import { loadInventory } from "../shared/state/inventory.ts";
import { PoolSettings } from "../shared/state/pools.ts";
import { isProvisional } from "../shared/state/records.ts";
import type { Parts } from "./parts.ts";
import type { Sandboxes } from "./sandboxes.ts";

export interface PoolView {
  template: string;
  /** Undefined: it was removed, and its members are going. */
  settings: PoolSettings | undefined;
  /** How many it is to have just now, as demand goes. */
  target: number;
  /** Members that provisions may claim, that run (`ready` among them), and that are being made. */
  ready: number;
  warm: number;
  making: number;
  /** Provisions that it could have served, and how many it did, since it was set. */
  asked: number;
  hits: number;
  /** Mean ms from acceptance: of those to their claim, of members until they were made; undefined before the first. */
  claimMs: number | undefined;
  madeMs: number | undefined;
  /** Makings that have failed since the last good one. */
  failures: number;
}

/**
 * Pools by template, as it is named in provisions: a name, a tag, or a VMID. A provision gets a member of the pool of its
 * template where it asks for nothing that would change the container's configuration: see `result.warm`.
 */
export interface TemplatePools {
  list(): Promise<PoolView[]>;
  /**
   * Keeps `min` members, up to `max` as demand grows. Only for clients of all teams: `forbidden`. Throws `invalid_input`,
   * and `template_not_found` for what is no template of everybody's.
   */
  set(template: string, settings: PoolSettings): Promise<void>;
  /** Removes its members, too. False: there was none. Only for clients of all teams: `forbidden`. */
  remove(template: string): Promise<boolean>;
}

export function createTemplatePools(parts: Parts, sandboxes: Sandboxes): TemplatePools {
  const { link, team, keys } = parts;
  const assertOperator = () => {
    if (team === undefined) return;
    throw new FleetError("forbidden", `pools are for all teams: leave the team ${team} (FLEET_TEAM) out`, {
      facts: { team },
    });
  };
  return {
    async list() {
      const [all, members] = await Promise.all([
        link.request(() => parts.pools.all()),
        team === undefined ? sandboxes.list({ team: POOL_TEAM }) : [],
      ]);
      const templates = [...new Set([...all.keys(), ...members.flatMap(({ pool }) => pool ?? [])])].sort();
      return Promise.all(
        templates.map(async (template): Promise<PoolView> => {
          const [counts, ready] = await link.request((redis) =>
            Promise.all([parts.pools.counts(template), redis.zcount(keys.poolReady(template), "(0", "+inf")]),
          );
          const own = members.filter(({ pool }) => pool === template);
          const { target, asked, hits, failures, made } = counts;
          return {
            template,
            settings: all.get(template),
            target,
            ready,
            warm: own.filter(({ state }) => state === "warm").length,
            making: own.filter(({ state }) => isProvisional(state)).length,
            asked,
            hits,
            claimMs: hits === 0 ? undefined : Math.round(counts.claimMs / hits),
            madeMs: made === 0 ? undefined : Math.round(counts.madeMs / made),
            failures,
          };
        }),
      );
    },
    async set(template, settings) {
      assertOperator();
      const parsed = PoolSettings.safeParse(settings, { error: sayIssue });
      if (!parsed.success) {
        const [issue] = parsed.error.issues;
        const field = issue?.path.join(".") || "settings";
        const text = `${field}: ${issue?.message ?? "is wrong"}; min is a whole number from 0, max one from 1, at least min`;
        throw new FleetError("invalid_input", text, { facts: { fields: [field] } });
      }
      await assertTemplate(parts, template);
      await link.request(() => parts.pools.set(template, parsed.data));
    },
    async remove(template) {
      assertOperator();
      return link.request(() => parts.pools.remove(template));
    },
  };
}

/** A team's own serve that team alone, and members are everybody's. */
async function assertTemplate({ link, keys }: Parts, template: string): Promise<void> {
  const inventory = await link.request((redis) => loadInventory(redis, keys));
  if (!inventory)
    throw new FleetError("node_unavailable", "no worker has read the cluster yet; start one, then ask again");
  const shared = inventory.replicas.filter(({ owner }) => owner === undefined);
  if (shared.some(({ name, tags, vmid }) => [name, ...tags, String(vmid)].includes(template))) return;
  const names = [...new Set(shared.map(({ name }) => name))].sort().join(", ") || "none";
  throw new FleetError(
    "template_not_found",
    `there is no template ${template} for everybody; templates are: ${names}`,
    {
      facts: { template },
    },
  );
}
