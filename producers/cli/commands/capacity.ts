/** How many more sandboxes there is room for. */
import type { Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { FleetRoom, JobInput } from "../../index.ts";
import { parseTemplate } from "../parse-values.ts";
import { type ProvisionOptions, toProvisionInput } from "../provision-input.ts";
import { readInput } from "../read-input.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable } from "../terminal.ts";
import { addPlacementOptions } from "./provision.ts";
import { addResourceOptions } from "./shared-options.ts";

const HELP = `
It counts by the rules that place a provision with the same options: memory, disk and number of sandboxes that each node may
promise, space that is left on storages, VMIDs, addresses and the team's quota. What has been accepted and waits for a node is
not counted.

Examples:
  fleet capacity cmux-base
  fleet capacity cmux-base --memory 8192 --node-label ssd`;

export function addCapacity(program: Command, cli: Cli): void {
  type Options = ProvisionOptions & GlobalOptions & { input?: string };
  const command = program
    .command("capacity")
    .summary("say how many more sandboxes fit, where, and what limits it")
    .description("Say how many more sandboxes of a template fit, on which nodes, and what limits it.")
    .argument("[template]", "as fleet provision takes it", parseTemplate)
    .option("--input <file>", "a provision as JSON from a file, or from stdin with -; options go over it");
  addPlacementOptions(command);
  addResourceOptions(command);
  command.addHelpText("after", HELP).action(async (template: string | number | undefined) => {
    const options = command.optsWithGlobals<Options>();
    await cli.run(options, async ({ fleet, print }) => {
      const base = options.input === undefined ? {} : await readInput(options.input);
      const input = toProvisionInput(base, template, options);
      if (input["template"] === undefined) {
        throw new FleetError("invalid_input", "template: give TEMPLATE or --input", {
          facts: { fields: ["template"] },
        });
      }
      const room = await fleet.capacity(input as JobInput<"provision">); // checked there, field by field
      print(room, toText(room));
      return undefined;
    });
  });
}

/** What nothing limits that is known is `many`. */
const show = (more: number) => (Number.isFinite(more) ? String(more) : "many");

function toText({ more, limit, nodes }: FleetRoom): string {
  const rows = nodes.map((node) => [node.node, show(node.more), node.limit]);
  return `${formatTable(["NODE", "MORE", "LIMITED BY"], rows)}${show(more)} more; limited by ${limit}\n`;
}
