/** Logins of the ops pages: made here, listed in OPS_LOGINS. */
import { text } from "node:stream/consumers";
import { Argument, type Command } from "commander";
import { FleetError } from "../../../shared/errors.ts";
import { formatLogin, LoginName, LoginPassword, OPS_ROLES, type OpsRole } from "../../../shared/logins.ts";
import type { Cli, GlobalOptions } from "../session.ts";

const HELP = `
The password is read from stdin, so that it is in no list of processes; a line feed at its end does not count. What is
printed goes into OPS_LOGINS of the workers, several with ',' between. It holds a hash, not the password.

Example:
  openssl rand -base64 18 | tee /dev/stderr | fleet login operator alice`;

export function addLogin(program: Command, cli: Cli): void {
  const command = program
    .command("login")
    .summary("make a login for the ops pages")
    .description("Print an entry for OPS_LOGINS: a viewer looks, an operator acts.")
    .addArgument(new Argument("<role>", "what it may do").choices(OPS_ROLES))
    .argument("<name>", "whose it is")
    .addHelpText("after", HELP)
    .action(async (role: OpsRole, name: string) => {
      const { json = false } = command.optsWithGlobals<GlobalOptions>();
      try {
        if (process.stdin.isTTY === true)
          throw refuse("password", "is read from stdin: pipe it in, as in: openssl rand -base64 18 | fleet login …");
        const password = (await text(process.stdin)).replace(/\r?\n$/, "");
        const login = await formatLogin(
          role,
          check(LoginName, "name", name),
          check(LoginPassword, "password", password),
        );
        cli.terminal.out(json ? `${JSON.stringify({ login })}\n` : `${login}\n`);
      } catch (error) {
        cli.fail(error, { json });
      }
    });
}

function check(schema: typeof LoginName, field: string, value: string): string {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw refuse(field, parsed.error.issues[0]?.message ?? "is not valid");
}

const refuse = (field: string, problem: string) =>
  new FleetError("invalid_input", `${field}: ${problem}`, { facts: { fields: [field] } });
