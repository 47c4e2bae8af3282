/** Pools: sandboxes that are made before they are asked for. */
import type { Command } from "commander";
import type { PoolView } from "../../index.ts";
import { formatDuration, NONE } from "../describe.ts";
import { parseNumber } from "../parse-values.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable } from "../terminal.ts";

const HELP = `
TEMPLATE is a template's name, tag or VMID, as provisions name it. A provision gets a member of the pool in milliseconds
where it asks for nothing but env, setup, services, metadata, TTL, idle and wake settings; all others are made as ever.

Examples:
  fleet pool set cmux-base --min 3 --max 10
  fleet pool ls`;

export function addPool(program: Command, cli: Cli): void {
  const pool = program
    .command("pool")
    .description("Have sandboxes made before they are asked for.")
    .addHelpText("after", HELP);
  addSet(pool, cli);
  addLs(pool, cli);
  addRm(pool, cli);
}

function addSet(pool: Command, cli: Cli): void {
  type Options = GlobalOptions & { min: number; max: number };
  const command = pool
    .command("set")
    .description("Keep so many ready of a template.")
    .argument("<template>", "its name, tag or VMID")
    .requiredOption("--min <n>", "how many, whatever is asked for", parseNumber)
    .requiredOption("--max <n>", "up to how many, as demand grows", parseNumber)
    .addHelpText("after", HELP)
    .action(async (template: string) => {
      const { min, max, ...options } = command.optsWithGlobals<Options>();
      await cli.run(options, async ({ fleet, print }) => {
        await fleet.pools.set(template, { min, max });
        print({ template, min, max }, `${template} is kept ready ${min} to ${max} times\n`);
        return undefined;
      });
    });
}

function addLs(pool: Command, cli: Cli): void {
  const command = pool
    .command("ls")
    .description("List pools with their members and how often they served.")
    .action(async () => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const all = await fleet.pools.list();
        print(all, formatTable(HEAD, all.map(toRow)));
        return undefined;
      });
    });
}

const HEAD = ["TEMPLATE", "MIN", "MAX", "TARGET", "READY", "MAKING", "SERVED", "CLAIM", "MADE IN", "FAILURES"];

function toRow({
  template,
  settings,
  target,
  ready,
  making,
  asked,
  hits,
  claimMs,
  madeMs,
  failures,
}: PoolView): string[] {
  const took = (ms: number | undefined) => (ms === undefined ? NONE : formatDuration(ms));
  const limits = [settings?.min ?? NONE, settings?.max ?? NONE];
  const numbers = [...limits, target, ready, making, `${hits} of ${asked}`, took(claimMs), took(madeMs), failures];
  return [template, ...numbers.map(String)];
}

function addRm(pool: Command, cli: Cli): void {
  const command = pool
    .command("rm")
    .description("Keep none of a template ready any more; those that are there go.")
    .argument("<template>", "as it was set")
    .action(async (template: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const removed = await fleet.pools.remove(template);
        print({ template, removed }, `${template} ${removed ? "has no pool any more" : "had no pool"}\n`);
        return undefined;
      });
    });
}
