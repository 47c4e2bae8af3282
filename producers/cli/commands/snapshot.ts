/** Snapshots of sandboxes: taken, listed, gone back to, deleted. */
import { type Command, Option } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import type { JobOutput } from "../../index.ts";
import { formatTime, NONE } from "../describe.ts";
import { parseDurationSec, parseNumber } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import { resolveSnapshot } from "../resolve-snapshot.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { formatTable } from "../terminal.ts";
import { change, SANDBOX } from "./changes.ts";
import { addWaitOptions, toSubmitOptions, type WaitOptions, withoutUndefined } from "./shared-options.ts";

const SNAPSHOT = "snapshot id snap_..., or its name";

export function addSnapshot(program: Command, cli: Cli): void {
  const command = program
    .command("snapshot")
    .description("Take snapshots of a sandbox, list them, go back to one, delete them.");
  addCreate(command, cli);
  const ls = command
    .command("ls")
    .description("List the snapshots of a sandbox, oldest first.")
    .argument("<sandbox>", SANDBOX)
    .action(async (sandbox: string) => {
      await cli.run(ls.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const snapshots = await fleet.sandboxes.snapshots(await resolveSandbox(sandbox, fleet.sandboxes));
        const rows = snapshots.map(({ id, name, createdAt, expiresAt }) => [
          id,
          name,
          formatTime(createdAt),
          expiresAt === undefined ? NONE : formatTime(expiresAt),
        ]);
        print(snapshots, formatTable(["SNAPSHOT", "NAME", "TAKEN", "DELETED AT"], rows));
        return undefined;
      });
    });
  const restore = addWaitOptions(command.command("restore"))
    .description(
      "Take a sandbox back to a snapshot of it: disk and configuration. It is stopped for that, and runs afterwards if it " +
        "ran; what was in memory is lost. On ZFS only the newest one can be gone back to.",
    )
    .argument("<sandbox>", SANDBOX)
    .argument("<snapshot>", SNAPSHOT)
    .action(async (sandbox: string, snapshot: string) => {
      const options = restore.optsWithGlobals<WaitOptions>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const snapshotId = await resolveSnapshot(snapshot, sandboxId, session.fleet.sandboxes);
        const ask = () => session.fleet.restore({ sandboxId, snapshotId }, toSubmitOptions(options));
        return change(session, options, ask, ({ name, state }) => `went back to ${name}, ${state}`);
      });
    });
  const rm = addWaitOptions(command.command("rm"))
    .description("Delete a snapshot; sandboxes that were made from it stay.")
    .argument("<sandbox>", SANDBOX)
    .argument("<snapshot>", SNAPSHOT)
    .action(async (sandbox: string, snapshot: string) => {
      const options = rm.optsWithGlobals<WaitOptions>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const snapshotId = await resolveSnapshot(snapshot, sandboxId, session.fleet.sandboxes);
        const ask = () => session.fleet.delete_snapshot({ sandboxId, snapshotId }, toSubmitOptions(options));
        const describe = ({ existed }: JobOutput<"delete_snapshot">) =>
          `${existed ? "deleted" : "was gone"} ${snapshotId}`;
        return change(session, options, ask, describe);
      });
    });
}

interface CreateOptions extends WaitOptions {
  mode: "inplace" | "template";
  description?: string;
  keepLast?: number;
  maxAge?: number;
}

function addCreate(parent: Command, cli: Cli): void {
  const command = addWaitOptions(parent.command("create"))
    .description("Take a snapshot of a sandbox, which runs on; fleet provision takes its id as a template.")
    .argument("<sandbox>", SANDBOX)
    .argument("[name]", "name in PVE; made up when absent")
    .addOption(
      new Option("--mode <mode>", "inplace: of its disk, and gone with it; template: as fleet template create")
        .choices(["inplace", "template"])
        .default("inplace"),
    )
    .option("--description <text>", "notes in PVE")
    .option("--keep-last <count>", "delete the oldest, so that so many are left with this one", parseNumber)
    .option("--max-age <duration>", "it is deleted so long after, such as 7d", parseDurationSec)
    .addHelpText("after", "\nExample:\n  fleet provision $(fleet snapshot create sbx_... before-upgrade)")
    .action(async (sandbox: string, name: string | undefined) => {
      const options = command.optsWithGlobals<CreateOptions>();
      await cli.run(options, async (session) => take(session, { sandbox, name, options }));
    });
}

async function take(
  session: Session,
  { sandbox, name, options }: { sandbox: string; name: string | undefined; options: CreateOptions },
): Promise<undefined> {
  const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
  const { mode, description, keepLast, maxAge: maxAgeSeconds } = options;
  const how = toSubmitOptions(options);
  if (mode === "template") {
    if (name === undefined || keepLast !== undefined || maxAgeSeconds !== undefined) {
      const text = "--mode template needs a name, and takes neither --keep-last nor --max-age";
      throw new FleetError("invalid_input", text, { facts: { fields: ["mode"] } });
    }
    const input = { sandboxId, name, mode, ...withoutUndefined({ description }) };
    return change(
      session,
      options,
      () => session.fleet.snapshot(input, how),
      ({ snapshotId }) => snapshotId,
    );
  }
  const input = { sandboxId, ...withoutUndefined({ name, description, keepLast, maxAgeSeconds }) };
  return change(
    session,
    options,
    () => session.fleet.snapshot(input, how),
    ({ snapshotId }) => snapshotId,
  );
}
