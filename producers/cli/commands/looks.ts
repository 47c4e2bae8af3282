/** Commands that look, and cancel. */
import { type Command, Option } from "commander";
import { TeamId } from "../../../shared/ids.ts";
import { SANDBOX_STATES } from "../../../shared/state/records.ts";
import type { SandboxState } from "../../index.ts";
import { SANDBOX_HEAD, toOperationFacts, toSandboxFacts, toSandboxRow } from "../describe.ts";
import { collectChoice, collectPairs, parseAs } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatFacts, formatTable } from "../terminal.ts";

export function addLs(program: Command, cli: Cli): void {
  type Options = GlobalOptions & {
    team?: string;
    state?: SandboxState[];
    metadata?: Record<string, string>;
    quiet?: boolean;
  };
  const command = program
    .command("ls")
    .description("List sandboxes that have not ended, oldest first.")
    .option("--team <team>", "of this team", parseAs(TeamId))
    .addOption(
      new Option("--state <state>", "in this state; repeatable")
        .choices(SANDBOX_STATES)
        .argParser(collectChoice(SANDBOX_STATES)),
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

export function addRetry(program: Command, cli: Cli): void {
  const command = program
    .command("retry")
    .description("Ask for a failed operation again: a new one of the same input, once however often it is asked for.")
    .argument("<operation>", "operation id op_...")
    .action(async (id: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const { id: operationId, sandboxId } = await fleet.retry(id);
        print({ operationId, sandboxId }, `${operationId}\n`);
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
