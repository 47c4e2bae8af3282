/** What teams may have, and what they have of it. */
import { FleetError } from "../shared/errors.ts";
import { TeamId } from "../shared/ids.ts";
import type { QuotaName } from "../shared/state/quota-names.ts";
import { Limits, QuotaOwner, type QuotaUse } from "../shared/state/quotas.ts";
import type { Parts } from "./parts.ts";

/** How many of each; `null` is no limit, whatever `*` has. */
export type TeamLimits = { readonly [N in QuotaName]?: number | null | undefined };

export interface QuotaView extends QuotaUse {
  team: string;
}

/**
 * Limits by team; `*` is every team, where it has none of its own. `sandboxes`: those that live or are made, whatever
 * their state; `provisions` and `execs`: accepted and not ended; `rate`: operations accepted within a minute. What gives
 * something back (destroy, hide, stop) counts for none and is never refused. Without a limit there is none.
 */
export interface TeamQuotas {
  /** What was set, `*` first; in a client of one team what holds for that one alone. */
  list(): Promise<{ team: string; limits: TeamLimits }[]>;
  /** What the team may have, has, and waits for. Throws `forbidden` for another team than the client's. */
  get(team: string): Promise<QuotaView>;
  /** Changes what `limits` names, at once; what exists stays. Returns all that is set for the team. Only for clients of all teams: `forbidden`. */
  set(team: string, limits: TeamLimits): Promise<TeamLimits>;
  /** Takes all back that was set for the team; false: there was nothing. Only for clients of all teams: `forbidden`. */
  remove(team: string): Promise<boolean>;
}

export function createTeamQuotas(parts: Parts): TeamQuotas {
  const { link, team: own } = parts;
  const assertOperator = () => {
    if (own === undefined) return;
    throw new FleetError("forbidden", `quotas are set for teams, not by them: leave the team ${own} (FLEET_TEAM) out`, {
      facts: { team: own },
    });
  };
  return {
    async list() {
      const all = await link.request(() => parts.quotas.all());
      return [...all]
        .filter(([owner]) => own === undefined || owner === own || owner === "*")
        .map(([team, limits]) => ({ team, limits }))
        .sort((a, b) => (a.team < b.team ? -1 : 1));
    },
    async get(team) {
      const parsed = TeamId.safeParse(team);
      if (!parsed.success) throw toInvalid("team", "must be a team's name");
      if (own !== undefined && own !== parsed.data) {
        throw new FleetError("forbidden", `this client was made for team ${own}`, { facts: { team: own } });
      }
      return { team, ...(await link.request(() => parts.quotas.look(parsed.data))) };
    },
    async set(team, limits) {
      assertOperator();
      const owner = parseOwner(team);
      const parsed = Limits.safeParse(limits);
      if (!parsed.success) {
        const field = parsed.error.issues[0]?.path.join(".") || "limits";
        throw toInvalid(
          field,
          "must be a whole number from 0, or null for none; there are sandboxes, provisions, execs, rate",
        );
      }
      return link.request(() => parts.quotas.set(owner, parsed.data));
    },
    async remove(team) {
      assertOperator();
      const owner = parseOwner(team);
      return link.request(() => parts.quotas.remove(owner));
    },
  };
}

function parseOwner(team: string): QuotaOwner {
  const parsed = QuotaOwner.safeParse(team);
  if (parsed.success) return parsed.data;
  throw toInvalid("team", 'must be a team\'s name, or "*" for every team');
}

const toInvalid = (field: string, problem: string): FleetError =>
  new FleetError("invalid_input", `${field}: ${problem}`, { facts: { fields: [field] } });
