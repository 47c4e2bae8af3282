/** Commands that look, and cancel. */
import { type Command, Option } from "commander";
import { SANDBOX_STATES } from "../../../shared/state/records.ts";
import type { FleetEventType, SandboxState } from "../../index.ts";
import { SANDBOX_HEAD, toEventLine, toOperationFacts, toSandboxFacts, toSandboxRow } from "../describe.ts";
import { collectPairs } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatFacts, formatTable, toPrintable } from "../terminal.ts";

export function addLs(program: Command, cli: Cli): void {
  type Options = GlobalOptions & {
    team?: string;
    state?: SandboxState[];
    metadata?: Record<string, string>;
    quiet?: boolean;
  };
  const collectState = (text: string, before: SandboxState[] = []) => [...before, text as SandboxState]; // choices check it
  const command = program
    .command("ls")
    .description("List sandboxes that have not ended, oldest first.")
    .option("--team <team>", "of this team")
    .addOption(
      new Option("--state <state>", "in this state; repeatable").choices(SANDBOX_STATES).argParser(collectState),
    )
    .option("--metadata <key=value>", "with this metadata; repeatable", collectPairs)
    .option("-q, --quiet", "ids only")
    .addHelpText("after", "\nExamples:\n  fleet ls --state running\n  fleet ls -q --metadata run=42")
    .action(async () => {
      const { team, state, metadata, quiet, json = false } = command.optsWithGlobals<Options>();
      await cli.run({ json }, async ({ fleet, terminal, print }) => {
        const sandboxes = await fleet.sandboxes.list({ team, state, metadata });
        const ids = sandboxes.map(({ id }) => id);
        const now = Date.now();
        const rows = () => sandboxes.map((sandbox) => toSandboxRow(sandbox, now, terminal.paint));
        if (quiet) print(ids, ids.map((id) => `${id}\n`).join(""));
        else print(sandboxes, formatTable(SANDBOX_HEAD, rows()));
        return undefined;
      });
    });
}

export function addGet(program: Command, cli: Cli): void {
  const command = program
    .command("get")
    .description("Show a sandbox with its services and their URLs.")
    .argument("<sandbox>", "sandbox id, or its VMID or hostname")
    .action(async (sandbox: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, terminal, print }) => {
        const record = await fleet.sandboxes.get(await resolveSandbox(sandbox, fleet.sandboxes));
        print(record, formatFacts(toSandboxFacts(record, terminal.paint)));
        return undefined;
      });
    });
}

export function addStatus(program: Command, cli: Cli): void {
  const command = program
    .command("status")
    .description("Show where an operation stands.")
    .argument("<operation>", "operation id op_...")
    .action(async (id: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, terminal, print }) => {
        const status = await (await fleet.operation(id)).status();
        print(status, formatFacts(toOperationFacts(status, terminal.paint)));
        return undefined;
      });
    });
}

export function addCancel(program: Command, cli: Cli): void {
  const command = program
    .command("cancel")
    .description("Ask an operation to undo what it made and end.")
    .argument("<operation>", "operation id op_...")
    .action(async (id: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const canceling = await (await fleet.operation(id)).cancel();
        print({ operationId: id, canceling }, canceling ? `canceling ${id}\n` : `${id} had ended\n`);
        return undefined;
      });
    });
}

const EVENT_TYPES = [
  "operation.accepted",
  "operation.succeeded",
  "operation.failed",
  "operation.canceled",
  "sandbox.changed",
  "sandbox.updated",
] as const satisfies readonly FleetEventType[];

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
    team?: string;
    type?: FleetEventType[];
  };
  const collectType = (text: string, before: FleetEventType[] = []) => [...before, text as FleetEventType]; // choices check it
  const command = program
    .command("events")
    .description(
      "Print state changes of sandboxes and ends of operations, in order; with --json one JSON value a line.",
    )
    .option("--after <cursor>", "go on after this event; 0 for all that are kept (from now on; with --once: 0)")
    .option("--follow", "keep printing new ones (default)")
    .addOption(new Option("--once", "end with the newest").conflicts("follow"))
    .option("--sandbox <sandbox>", "of this sandbox")
    .option("--operation <operation>", "of this operation")
    .option("--team <team>", "of this team")
    .addOption(new Option("--type <type>", "of this type; repeatable").choices(EVENT_TYPES).argParser(collectType))
    .addHelpText("after", EVENT_EXAMPLES)
    .action(async () => {
      const { json = false, after, once = false, team, type, sandbox, operation } = command.optsWithGlobals<Options>();
      await cli.run({ json }, async ({ fleet, terminal, interrupt, print }) => {
        const events = fleet.events({
          after: after ?? (once ? "0" : "$"),
          follow: !once,
          signal: interrupt,
          team,
          types: type,
          operation,
          sandbox: sandbox === undefined ? undefined : await resolveSandbox(sandbox, fleet.sandboxes),
        });
        for await (const event of events) print(event, `${toPrintable(toEventLine(event, terminal.paint))}\n`);
        return undefined;
      });
    });
}
