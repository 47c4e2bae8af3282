/** Shell text for execd, which runs everything through /bin/bash -c. */

/** One word of a shell, whatever is in it. */
export const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** What cmux's backend sets before each command. */
const BASE_ENV = { HOME: "/root", XDG_RUNTIME_DIR: "/run/user/0" };

/** The command in its folder and environment. Names are checked by the schema; values are quoted. */
export function toScript(
  command: string,
  { env = {}, cwd }: { env?: Readonly<Record<string, string>>; cwd?: string | undefined },
): string {
  const assignments = Object.entries({ ...BASE_ENV, ...env }).map(([name, value]) => `${name}=${quote(value)}`);
  const lines = [`export ${assignments.join(" ")}`];
  if (cwd !== undefined) lines.push(`cd -- ${quote(cwd)} || exit 1`);
  return [...lines, command].join("\n");
}
