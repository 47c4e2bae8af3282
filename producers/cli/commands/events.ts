/** The event stream, and who shares it. */
import { type Command, Option } from "commander";
import { BatchId, OperationId, TeamId } from "../../../shared/ids.ts";
import { EVENT_TYPES } from "../../../shared/state/events.ts";
import type { FleetEventType } from "../../index.ts";
import { toEventLine } from "../describe.ts";
import { collectChoice, parseAs } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";

const EVENT_EXAMPLES = `
Each line begins with its time and its cursor; give the last cursor that you saw to --after to miss nothing.
It ends with cursor_expired where events in between are kept no longer.

Examples:
  fleet events
  fleet events --once --type operation.failed
  fleet events --json --after 1718000000000-42 | while read -r event; do ...; done`;

export function addEvents(program: Command, cli: Cli): void {
  type Options = GlobalOptions & {
    after?: string;
    once?: boolean;
    sandbox?: string;
    operation?: string;
    batch?: string;
    team?: string;
    type?: FleetEventType[];
  };
  const command = program
    .command("events")
    .description(
      "Print state changes of sandboxes and ends of operations, in order; with --json one JSON value a line.",
    )
    .option("--after <cursor>", "go on after this event; 0 for all that are kept (from now on; with --once: 0)")
    .option("--follow", "keep printing new ones (default)")
    .addOption(new Option("--once", "end with the newest").conflicts("follow"))
    .option("--sandbox <sandbox>", "of this sandbox")
    .option("--operation <operation>", "of this operation", parseAs(OperationId))
    .option("--batch <batch>", "of the operations of this batch", parseAs(BatchId))
    .option("--team <team>", "of this team", parseAs(TeamId))
    .addOption(
      new Option("--type <type>", "of this type; repeatable")
        .choices(EVENT_TYPES)
        .argParser(collectChoice(EVENT_TYPES)),
    )
    .addHelpText("after", EVENT_EXAMPLES)
    .action(async () => {
      const { json = false, after, once = false, sandbox, type, ...of } = command.optsWithGlobals<Options>();
      await cli.run({ json }, async ({ fleet, terminal, interrupt, print }) => {
        const events = fleet.events({
          after: after ?? (once ? "0" : "$"),
          follow: !once,
          signal: interrupt,
          team: of.team,
          operation: of.operation,
          batch: of.batch,
          types: type,
          sandbox: sandbox === undefined ? undefined : await resolveSandbox(sandbox, fleet.sandboxes),
        });
        for await (const event of events) print(event, `${toPrintable(toEventLine(event, terminal.paint))}\n`);
        return undefined;
      });
    });
  addGroups(command, cli);
}

const GROUP_HEAD = ["GROUP", "BEHIND", "IN HAND", "DEAD", "CONSUMERS", "CURSOR"] as const;

/** Consumer groups; they are made by who consumes. */
function addGroups(events: Command, cli: Cli): void {
  const list = events
    .command("groups")
    .description("List the consumer groups: how many events each is behind, has in hand and has given up.")
    .action(async () => {
      await cli.run(list.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const groups = await fleet.eventGroups.list();
        const rows = groups.map(({ name, lag, pending, dead, consumers, after }) =>
          [name, lag, pending, dead, consumers.length, after].map(String),
        );
        print(groups, formatTable(GROUP_HEAD, rows));
        return undefined;
      });
    });
  const dead = events
    .command("dead")
    .description("Print the events that a consumer group gave up.")
    .argument("<group>", "its name; TEAM/NAME for a team's")
    .action(async (group: string) => {
      await cli.run(dead.optsWithGlobals<GlobalOptions>(), async ({ fleet, terminal, print }) => {
        for (const one of await fleet.eventGroups.dead(group)) {
          const line =
            one.event === null ? `${one.cursor}  of a newer version` : toEventLine(one.event, terminal.paint);
          print(one, `${toPrintable(line)}\n`);
        }
        return undefined;
      });
    });
  const forget = events
    .command("forget")
    .description("Remove a consumer group, with what it has in hand and has given up.")
    .argument("<group>", "its name; TEAM/NAME for a team's")
    .action(async (group: string) => {
      await cli.run(forget.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        await fleet.eventGroups.remove(group);
        print({ group, removed: true }, `${toPrintable(group)} is forgotten\n`);
        return undefined;
      });
    });
}
