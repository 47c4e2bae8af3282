/** Where webhooks go, and what became of them. */
import type { Command } from "commander";
import { formatDuration, formatTime, NONE } from "../describe.ts";
import { EXIT } from "../exit-codes.ts";
import { parseDurationMs } from "../parse-values.ts";
import { note } from "../progress.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable, toPrintable } from "../terminal.ts";

const HELP = `
TARGET is a name of the workers' FLEET_WEBHOOKS: what is not there gets nothing. A message that a receiver does not take is
tried again for about a day, then kept as dead for two weeks.

Examples:
  fleet webhooks test app
  fleet webhooks dead app
  fleet webhooks retry app`;

const HEAD = ["TARGET", "HOST", "TEAM", "TYPES", "WAITING", "RETRYING", "DEAD", "BEHIND", "LAST ERROR"] as const;
const DEAD_HEAD = ["MESSAGE", "TYPE", "OPERATION", "TRIES", "GIVEN UP", "REASON"] as const;
/** What workers tell of their targets every 5 s. */
const SILENT_MS = 30_000;

export function addWebhooks(program: Command, cli: Cli): void {
  const webhooks = program.command("webhooks").description("Look at webhooks, try them, send them again.");
  webhooks.addHelpText("after", HELP);
  addLs(webhooks, cli);
  addDead(webhooks, cli);
  addRetry(webhooks, cli);
  addTest(webhooks, cli);
}

function addLs(webhooks: Command, cli: Cli): void {
  const command = webhooks
    .command("ls")
    .description("List the targets, and how many messages wait, are tried again and were given up.")
    .action(async () => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, terminal, print }) => {
        const targets = await fleet.webhooks.list();
        const rows = targets.map(({ name, host, team, types, seenAt, lastError, ...counts }) => {
          const silentMs = Date.now() - seenAt;
          const gone = terminal.paint("red", `in no worker's configuration for ${formatDuration(silentMs)}`);
          const { waiting, retrying, dead, behind } = counts;
          const about = silentMs > SILENT_MS ? gone : (lastError ?? NONE);
          const numbers = [waiting, retrying, dead, behind].map(String);
          return [name, host, team ?? NONE, types?.join(",") ?? "all", ...numbers, about];
        });
        print(targets, formatTable(HEAD, rows));
        return undefined;
      });
    });
}

function addDead(webhooks: Command, cli: Cli): void {
  const command = webhooks
    .command("dead")
    .description("List the messages that were given up, newest first.")
    .argument("<target>", "name of the target")
    .action(async (target: string) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, print }) => {
        const dead = await fleet.webhooks.dead(target);
        const rows = dead.map(({ id, type, operation, attempts, at, reason }) => [
          id,
          type,
          operation ?? NONE,
          String(attempts),
          formatTime(at),
          reason,
        ]);
        print(dead, formatTable(DEAD_HEAD, rows));
        return undefined;
      });
    });
}

function addRetry(webhooks: Command, cli: Cli): void {
  const command = webhooks
    .command("retry")
    .description("Send messages again that were given up: all of a target, or those that are named.")
    .argument("<target>", "name of the target")
    .argument("[message...]", "ids, as fleet webhooks dead shows them")
    .action(async (target: string, ids: string[]) => {
      await cli.run(command.optsWithGlobals<GlobalOptions>(), async ({ fleet, terminal, print }) => {
        const asked = new Set(ids).size;
        const count = await fleet.webhooks.retry(target, asked === 0 ? undefined : ids);
        print({ target, retried: count }, `${count} sent again\n`);
        if (count >= asked) return EXIT.ok;
        note(
          terminal,
          `fleet: ${asked - count} of ${asked} are no dead messages of ${toPrintable(target)}; see fleet webhooks dead`,
        );
        return EXIT.failed;
      });
    });
}

function addTest(webhooks: Command, cli: Cli): void {
  const command = webhooks
    .command("test")
    .description("Have a worker send a message of type webhook.test, once, and show what the receiver answered.")
    .argument("<target>", "name of the target")
    .option("--timeout <duration>", "wait no longer than this (30s)", parseDurationMs)
    .action(async (target: string) => {
      const options = command.optsWithGlobals<GlobalOptions & { timeout?: number }>();
      await cli.run(options, async ({ fleet, interrupt, print }) => {
        const taken = await fleet.webhooks.test(target, { timeoutMs: options.timeout, signal: interrupt });
        print(taken, `${toPrintable(target)} answered ${taken.status} after ${formatDuration(taken.tookMs)}\n`);
        return undefined;
      });
    });
}
