/** Who gets in at public URLs: API keys for programs, signed links for people. */
import type { Command } from "commander";
import { formatTime, NONE } from "../describe.ts";
import { parseDurationSec } from "../parse-values.ts";
import { resolveSandbox } from "../resolve-sandbox.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";
import { change, SANDBOX } from "./changes.ts";
import { addWaitOptions, toSubmitOptions, type WaitOptions, withoutUndefined } from "./shared-options.ts";

const HELP = `
A key opens its team's services that were exposed with --auth api_key, as "Authorization: Bearer KEY" or "X-Api-Key: KEY".
It is shown once, when it is made; what is kept of it is a hash.

Examples:
  KEY=$(fleet keys create ci --for 90d)
  curl -H "Authorization: Bearer $KEY" https://api-20001.sandbox.example.com
  fleet keys revoke 0123456789ab`;

export function addKeys(program: Command, cli: Cli): void {
  const keys = program.command("keys").description("Make, list and revoke API keys for services.");
  keys.addHelpText("after", HELP);
  addCreate(keys, cli);
  addLs(keys, cli);
  addRevoke(keys, cli);
}

function addCreate(keys: Command, cli: Cli): void {
  type Options = GlobalOptions & { team?: string; for?: number };
  const command = keys
    .command("create")
    .description("Make a key and print it: nobody can show it a second time.")
    .argument("<name>", "what it is for")
    .option("--team <team>", "whose services it opens (FLEET_TEAM, else default)")
    .option("--for <duration>", "it ends after this long (never)", parseDurationSec)
    .action(async (name: string) => {
      const { team, for: ttlSeconds, ...options } = command.optsWithGlobals<Options>();
      await cli.run(options, async ({ fleet, terminal, print }) => {
        const made = await fleet.keys.create({ name, team, ttlSeconds });
        if (terminal.watched) terminal.err(`key ${made.id} of team ${made.team}; it is shown this once\n`);
        print(made, `${made.key}\n`);
        return undefined;
      });
    });
}

function addLs(keys: Command, cli: Cli): void {
  const command = keys
    .command("ls")
    .description("List the keys, oldest first.")
    .action(async () => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const all = await fleet.keys.list();
        const rows = all.map(({ id, name, team, createdAt, expiresAt }) => {
          const ends = expiresAt === undefined ? NONE : formatTime(expiresAt);
          return [id, name, team, formatTime(createdAt), ends];
        });
        print(all, formatTable(["KEY", "NAME", "TEAM", "MADE", "ENDS"], rows));
        return undefined;
      });
    });
}

function addRevoke(keys: Command, cli: Cli): void {
  const command = keys
    .command("revoke")
    .description("Take a key back, at once.")
    .argument("<key>", "its id, as fleet keys ls shows it")
    .action(async (id: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        await fleet.keys.revoke(id);
        print({ id, revoked: true }, `${toPrintable(id)} is revoked\n`);
        return undefined;
      });
    });
}

export function addLink(program: Command, cli: Cli): void {
  type Options = WaitOptions & { for?: number; path?: string };
  const command = addWaitOptions(program.command("link"))
    .summary("make a link that opens a service")
    .description(
      "Make a signed link to a service that was exposed with --auth link: whoever has it gets in until it ends.",
    )
    .argument("<sandbox>", SANDBOX)
    .argument("<service>", "service name")
    .option("--for <duration>", "how long it and the session that it begins let in (1d)", parseDurationSec)
    .option("--path <path>", "where it leads to, with its query (/)")
    .addHelpText("after", "\nExample:\n  fleet link 20001 vscode --for 1h --path '/?folder=/workspace'")
    .action(async (sandbox: string, name: string) => {
      const { for: ttlSeconds, path, ...options } = command.optsWithGlobals<Options>();
      await cli.run(options, async (session) => {
        const sandboxId = await resolveSandbox(sandbox, session.fleet.sandboxes);
        const input = { sandboxId, name, ...withoutUndefined({ ttlSeconds, path }) };
        return change(
          session,
          options,
          () => session.fleet.link(input, toSubmitOptions(options)),
          ({ url }) => url,
        );
      });
    });
}
