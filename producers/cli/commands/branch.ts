/** Copies of a sandbox as it stands. */
import type { Command } from "commander";
import type { BatchPolicy } from "../../../shared/state/records.ts";
import { parseNumber } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli } from "../session.ts";
import { SANDBOX } from "./changes.ts";
import { provisionMany } from "./provision.ts";
import { addWaitOptions, batchIdOption, policyOption, type WaitOptions } from "./shared-options.ts";

export function addBranch(program: Command, cli: Cli): void {
  type Options = WaitOptions & { count: number; id?: string; policy?: BatchPolicy };
  const command = addWaitOptions(program.command("branch"))
    .summary("make copies of a sandbox as it stands")
    .description(
      "Make copies of a sandbox as it stands, each a sandbox of its own with its disk, resources, services, metadata and " +
        "TTL, or of that as much as workers allow. It runs on. All of them are one batch, and what is made for that goes with " +
        "the batch's end.",
    )
    .argument("<sandbox>", SANDBOX)
    .requiredOption("-n, --count <count>", "how many, 1 to 100", parseNumber)
    .addOption(batchIdOption())
    .addOption(policyOption())
    .addHelpText("after", "\nExample:\n  fleet branch 20001 --count 8 --policy undo")
    .action(async (sandbox: string) => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        return provisionMany(session, options.count, options, (how, count) =>
          session.fleet.branch({ sandboxId, count }, how),
        );
      });
    });
}
