/** What teams may have at once, and in a minute. */
import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import { QUOTA_NAMES, type QuotaName } from "../../../shared/state/quota-names.ts";
import type { QuotaView, TeamLimits } from "../../index.ts";
import { NONE } from "../describe.ts";
import { parseLimit } from "../parse-values.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable } from "../terminal.ts";

const HELP = `
TEAM is a team, or '*' for every team that has no limit of its own. Without a limit there is none. What is over a quota
is refused as quota_exceeded, or waits for room with --on-quota wait. Destroy, hide and stop are never refused.

Examples:
  fleet quota set '*' --sandboxes 20 --rate 600
  fleet quota set acme --provisions 5 --execs 50 --rate none
  fleet quota get acme`;

const WHAT: Record<QuotaName, string> = {
  sandboxes: "that live or are made, whatever their state",
  provisions: "accepted and not ended",
  execs: "accepted and not ended",
  rate: "operations accepted within a minute",
};

export function addQuota(program: Command, cli: Cli): void {
  const quota = program.command("quota").description("Limit what teams may have at once.").addHelpText("after", HELP);
  addSet(quota, cli);
  addLs(quota, cli);
  addGet(quota, cli);
  addRm(quota, cli);
}

function addSet(quota: Command, cli: Cli): void {
  type Options = GlobalOptions & { [N in QuotaName]?: number | "none" };
  const command = quota
    .command("set")
    .description("Set limits of a team at once; those left out stay as they are.")
    .argument("<team>", "a team, or '*' for every team");
  for (const name of QUOTA_NAMES) command.option(`--${name} <n>`, `${WHAT[name]}; or none`, parseLimit);
  command.addHelpText("after", HELP).action(async (team: string) => {
    const options = command.optsWithGlobals<Options>();
    await cli.run(options, async ({ fleet, print }) => {
      const given = QUOTA_NAMES.flatMap((name) =>
        options[name] === undefined ? [] : [[name, options[name]] as const],
      );
      const limits = Object.fromEntries(given.map(([name, limit]) => [name, limit === "none" ? null : limit]));
      if (Object.keys(limits).length === 0) {
        throw new FleetError("invalid_input", "nothing to set; give --sandboxes, --provisions, --execs or --rate", {
          facts: { fields: [...QUOTA_NAMES] },
        });
      }
      const all = await fleet.quotas.set(team, limits);
      print({ team, limits: all }, toLimitTable([{ team, limits: all }]));
      return undefined;
    });
  });
}

function addLs(quota: Command, cli: Cli): void {
  const command = quota
    .command("ls")
    .description("List the limits that were set.")
    .action(async () => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const all = await fleet.quotas.list();
        print(all, toLimitTable(all));
        return undefined;
      });
    });
}

function addGet(quota: Command, cli: Cli): void {
  const command = quota
    .command("get")
    .description("Show what a team may have, has, and waits for.")
    .argument("<team>", "a team")
    .action(async (team: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const view = await fleet.quotas.get(team);
        print(view, toUseTable(view));
        return undefined;
      });
    });
}

function addRm(quota: Command, cli: Cli): void {
  const command = quota
    .command("rm")
    .description("Take all limits of a team back; those of '*' hold again.")
    .argument("<team>", "a team, or '*'")
    .action(async (team: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const removed = await fleet.quotas.remove(team);
        print({ team, removed }, `${team} ${removed ? "has no limits of its own any more" : "had no limits"}\n`);
        return undefined;
      });
    });
}

function toLimitTable(all: readonly { team: string; limits: TeamLimits }[]): string {
  const show = (limit: number | null | undefined) => (limit === null ? "none" : String(limit ?? NONE));
  const rows = all.map(({ team, limits }) => [team, ...QUOTA_NAMES.map((name) => show(limits[name]))]);
  return formatTable(["TEAM", ...QUOTA_NAMES.map((name) => name.toUpperCase())], rows);
}

function toUseTable({ used, limits, waiting }: QuotaView): string {
  const rows = QUOTA_NAMES.map((name) => [name, String(used[name]), String(limits[name] ?? "none")]);
  return formatTable(["QUOTA", "USED", "LIMIT"], [...rows, ["waiting", String(waiting), NONE]]);
}
