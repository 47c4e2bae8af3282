/** Moving a sandbox to another node. */
import type { Command } from "commander";
import { parseDurationSec, parseNumber } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli } from "../session.ts";
import { change, SANDBOX } from "./changes.ts";
import { addWaitOptions, toSubmitOptions, type WaitOptions, withoutUndefined } from "./shared-options.ts";

const HELP = `
PVE shuts a running container down, copies the disks that the nodes do not share, and starts it there; what was in memory is lost,
id, URLs and address book stay. It moves no linked clones of local ZFS, and no local disks with snapshots unless on ZFS.

Examples:
  fleet migrate 20001 --to pve2
  fleet node drain pve1 --migrate`;

export function addMigrate(program: Command, cli: Cli): void {
  type Options = WaitOptions & { to?: string; storage?: string; grace?: number; bwlimit?: number };
  const command = addWaitOptions(program.command("migrate"))
    .summary("move a sandbox to another node")
    .description("Move a sandbox to another node: it is shut down for that, and started again if it ran.")
    .argument("<sandbox>", SANDBOX)
    .option("--to <node>", "which node (the one with the most room)")
    .option("--storage <storage>", "where its local disks go (a storage of the same name)")
    .option("--grace <duration>", "how long it may take to shut down (60s)", parseDurationSec)
    .option("--bwlimit <kib>", "I/O limit of the copy in KiB/s", parseNumber)
    .addHelpText("after", HELP)
    .action(async (sandbox: string) => {
      const { to, storage, grace, bwlimit, ...options } = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const more = { target: to, targetStorage: storage, graceSec: grace, bwlimitKib: bwlimit };
        const ask = () => session.fleet.migrate({ sandboxId, ...withoutUndefined(more) }, toSubmitOptions(options));
        return change(session, options, ask, ({ from, node, state }) =>
          from === node ? `it stands on ${node}` : `moved from ${from} to ${node}, ${state}`,
        );
      });
    });
}
