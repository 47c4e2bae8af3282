/** PVE's containers against the records, as an operator asks for it. */
import type { Command } from "commander";
import type { Finding } from "../../index.ts";
import { formatTime, NONE } from "../describe.ts";
import { EXIT } from "../exit-codes.ts";
import { parseDurationMs } from "../parse-values.ts";
import type { Cli, GlobalOptions, Session } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";
import { isAgreedTo } from "./agree.ts";

const HELP = `
Workers do the same by themselves every few seconds. What no sandbox owns is in quarantine first, for
FLEET_STRAY_GRACE_SECONDS where it is proven that nobody can use it, else for FLEET_ORPHAN_GRACE_HOURS; then it is removed.
What may be somebody's work is left: of an earlier Redis, of a time that Redis has forgotten, or adopted. To keep one, take
it in (fleet adopt, or --rebuild) or take the fleet's line out of its notes.

After Redis lost all its data: stop producers, start workers, then --rebuild --dry-run, then --rebuild.

Examples:
  fleet reconcile --dry-run
  fleet reconcile --rebuild
  fleet reconcile --remove-orphans --dry-run`;

type Options = GlobalOptions & {
  dryRun?: boolean;
  rebuild?: boolean;
  removeOrphans?: boolean;
  timeout?: number;
  yes?: boolean;
};

export function addReconcile(program: Command, cli: Cli): void {
  const command = program
    .command("reconcile")
    .summary("compare PVE with the records, and mend what differs")
    .description("Compare PVE's containers with the records now, mend what differs, and list it.")
    .option("--dry-run", "only list what would be done")
    .option("--rebuild", "make records anew of containers with the fleet's stamp that have none")
    .option("--remove-orphans", "remove what is in quarantine now, also what only an operator may give up")
    .option("--timeout <duration>", "wait no longer than this, then end with 124; the workers go on", parseDurationMs)
    .option("-y, --yes", "do not ask before --remove-orphans")
    .addHelpText("after", HELP)
    .action(async () => {
      const options = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => reconcile(session, options));
    });
}

async function reconcile(session: Session, options: Options): Promise<number> {
  const { fleet, terminal, json, interrupt, print } = session;
  const { dryRun = false, rebuild = false, removeOrphans = false, timeout: timeoutMs } = options;
  if (removeOrphans && !dryRun) {
    const found = await fleet.reconcile({ dryRun: true, removeOrphans, timeoutMs, signal: interrupt });
    const doomed = found.filter(({ done }) => done === "to remove");
    if (doomed.length > 0 && !json) terminal.err(toTable(doomed));
    const question = `destroy these ${doomed.length} containers?`;
    if (doomed.length > 0 && !(await isAgreedTo(session, question, options))) {
      terminal.err("fleet: nothing was removed\n");
      return EXIT.failed;
    }
  }
  const onProgress = (done: number | undefined) => {
    if (!json && done !== 0) terminal.err(done === undefined ? "waiting for a worker\n" : `${done} done\n`);
  };
  const found = await fleet.reconcile({ dryRun, rebuild, removeOrphans, timeoutMs, signal: interrupt, onProgress });
  print(found, found.length === 0 ? "PVE and the records agree\n" : `${toTable(found)}${summarize(found)}\n`);
  return EXIT.ok;
}

function toTable(found: readonly Finding[]): string {
  const rows = found.map(({ what, node, vmid, name, sandbox, team, done, at, text }) => [
    what,
    node,
    String(vmid),
    name === undefined ? NONE : toPrintable(name),
    sandbox ?? NONE,
    team ?? NONE,
    done,
    at === undefined ? NONE : formatTime(at),
    toPrintable(text),
  ]);
  return formatTable(["WHAT", "NODE", "VMID", "NAME", "SANDBOX", "TEAM", "DONE", "REMOVED AT", "WHY"], rows);
}

function summarize(found: readonly Finding[]): string {
  const counts = new Map<string, number>();
  for (const { what, done } of found) counts.set(`${what} ${done}`, (counts.get(`${what} ${done}`) ?? 0) + 1);
  return [...counts].map(([what, count]) => `${count} ${what}`).join(", ");
}
