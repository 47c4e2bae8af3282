/** The commands, wired. */
import { createRequire } from "node:module";
import { Command, CommanderError } from "commander";
import { addAdopt } from "./commands/adopt.ts";
import { addBatch } from "./commands/batch.ts";
import { addBranch } from "./commands/branch.ts";
import { addCapacity } from "./commands/capacity.ts";
import { addConfigure, addDestroy, addExtend, addPower, addServices, addUpdate } from "./commands/changes.ts";
import { addCopy } from "./commands/copy.ts";
import { addDoctor } from "./commands/doctor.ts";
import { addEvents } from "./commands/events.ts";
import { addExec } from "./commands/exec.ts";
import { addKeys, addLink } from "./commands/keys.ts";
import { addLogin } from "./commands/login.ts";
import { addCancel, addGet, addLs, addRetry, addStatus } from "./commands/looks.ts";
import { addMigrate } from "./commands/migrate.ts";
import { addNode } from "./commands/node.ts";
import { addNodes } from "./commands/nodes.ts";
import { addPool } from "./commands/pool.ts";
import { addProvision } from "./commands/provision.ts";
import { addProxy } from "./commands/proxy.ts";
import { addQuota } from "./commands/quota.ts";
import { addReconcile } from "./commands/reconcile.ts";
import { addShell } from "./commands/shell.ts";
import { addSnapshot } from "./commands/snapshot.ts";
import { addTemplate } from "./commands/template.ts";
import { addWebhooks } from "./commands/webhooks.ts";
import { EXIT, EXIT_HELP } from "./exit-codes.ts";
import { sortOptions, toSummary, wrapParagraphs } from "./help-texts.ts";
import type { Cli } from "./session.ts";

const HELP = `
SANDBOX is a sandbox id sbx_..., or its VMID or hostname. OPERATION is an operation id op_...

Environment:
  REDIS_URL         the fleet's Redis: redis://host:6379/0, rediss:// for TLS, redis-sentinel://, redis-cluster://
  FLEET_PREFIX      which fleet, in braces ({fleet})
  FLEET_TEAM        count for this team and see no other; all teams when absent
  FLEET_SECRET_KEY  the workers' key; needed only for what is secret: --env, stdin, files
  NO_COLOR          no colours

${EXIT_HELP}

Examples:
  fleet provision cmux-base --service web:8080
  fleet provision cmux-base --count 200
  fleet exec 20001 -- npm test
  fleet cp -r ./src 20001:/workspace/src
  fleet ls --state running
  fleet destroy 20001`;

/** By the package's own name: the file lies elsewhere once it is built. */
const versionOf = (): string => createRequire(import.meta.url)("sandbox-fleet/package.json").version;

/** Exported for tests. */
export function createProgram(cli: Cli): Command {
  const program = new Command("fleet")
    .description("Sandboxes on Proxmox VE: make them, run commands in them, expose their ports, destroy them.")
    .option("--json", 'JSON for machines: one value on stdout, errors on stderr as {"error":{code,message,facts}}')
    .addHelpText("after", HELP)
    .configureHelp({ showGlobalOptions: true, subcommandDescription: toSummary, visibleOptions: sortOptions })
    .configureOutput({
      writeOut: (text) => cli.terminal.out(wrapParagraphs(text, cli.terminal.columns)),
      writeErr: (text) => cli.terminal.err(wrapParagraphs(text, cli.terminal.columns)),
      outputError: () => {},
    })
    .exitOverride()
    .hook("preAction", (_, command) => {
      cli.command = command;
    });
  addProvision(program, cli);
  addBatch(program, cli);
  addExec(program, cli);
  addShell(program, cli);
  addCopy(program, cli);
  addServices(program, cli);
  addLink(program, cli);
  addKeys(program, cli);
  addSnapshot(program, cli);
  addBranch(program, cli);
  addTemplate(program, cli);
  addAdopt(program, cli);
  addPower(program, cli);
  addConfigure(program, cli);
  addMigrate(program, cli);
  addUpdate(program, cli);
  addExtend(program, cli);
  addDestroy(program, cli);
  addLs(program, cli);
  addGet(program, cli);
  addStatus(program, cli);
  addCancel(program, cli);
  addRetry(program, cli);
  addEvents(program, cli);
  addNodes(program, addNode(program, cli), cli);
  addCapacity(program, cli);
  addReconcile(program, cli);
  addQuota(program, cli);
  addPool(program, cli);
  addWebhooks(program, cli);
  addProxy(program, cli);
  addLogin(program, cli);
  addDoctor(program, cli);
  program
    .command("version")
    .description("Print the version of this client; so does fleet --version.")
    .action(() => cli.terminal.out(`${versionOf()}\n`));
  return program;
}

/** Runs one command line; returns its exit code. */
export async function runProgram(cli: Cli, words: readonly string[]): Promise<number> {
  // Not as an option of the program, which it would be of each command as well: some have one of that name.
  const asked = words[0] === "--version" ? ["version"] : [...words];
  try {
    await createProgram(cli).parseAsync(asked, { from: "user" });
    return cli.code;
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return EXIT.ok; // help was asked for
    if (error.code !== "commander.help") cli.terminal.err(formatUsage(error, words.includes("--json")));
    return EXIT.usage;
  }
}

function formatUsage(error: CommanderError, json: boolean): string {
  const text = error.message
    .replace(/^error: /, "")
    .replaceAll("\n", " ")
    .replace(/\.$/, "");
  if (json) return `${JSON.stringify({ error: { code: "usage", message: text, facts: {} } })}\n`;
  return `fleet: usage: ${text}; see --help\n`;
}
