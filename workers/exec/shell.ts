/** Shell text for execd, which runs everything through /bin/bash -c. */
import { quoteWord } from "../../shared/shell-quote.ts";

/** What cmux's backend sets before each command. */
const BASE_ENV = { HOME: "/root", XDG_RUNTIME_DIR: "/run/user/0" };

/** The command in its folder and environment. Names are checked by the schema; values are quoted. */
export function toScript(
  command: string,
  { env = {}, cwd }: { env?: Readonly<Record<string, string>>; cwd?: string | undefined },
): string {
  const assignments = Object.entries({ ...BASE_ENV, ...env }).map(([name, value]) => `${name}=${quoteWord(value)}`);
  const lines = [`export ${assignments.join(" ")}`];
  if (cwd !== undefined) lines.push(`cd -- ${quoteWord(cwd)} || exit 1`);
  return [...lines, command].join("\n");
}
