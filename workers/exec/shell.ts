/** Shell text for /bin/bash -c in a sandbox: a command in its folder and environment, as another user, with its input. */
import { quoteWord } from "../../shared/shell-quote.ts";
import type { Framing } from "./framing.ts";
import { MARK_BYTES } from "./leftovers.ts";

/** What cmux's backend sets before each command. */
const BASE_ENV = { HOME: "/root", XDG_RUNTIME_DIR: "/run/user/0" };

export interface CommandPlace {
  env?: Readonly<Record<string, string>>;
  cwd?: string | undefined;
}

/** The command in its folder and environment. Names are checked by the schema; values are quoted. */
export function toScript(command: string, { env = {}, cwd }: CommandPlace): string {
  return toText(command, { env: { ...BASE_ENV, ...env }, cwd });
}

function toText(command: string, { env = {}, cwd }: CommandPlace): string {
  const assignments = Object.entries(env).map(([name, value]) => `${name}=${quoteWord(value)}`);
  const lines = assignments.length > 0 ? [`export ${assignments.join(" ")}`] : [];
  if (cwd !== undefined) lines.push(`cd -- ${quoteWord(cwd)} || exit 1`);
  return [...lines, command].join("\n");
}

/** Who the command runs as; `mark` is what the script says, with why, when that can't be. */
export interface As {
  user: string;
  mark: string;
}

/** The same as another user, for a way that has an input of its own and takes texts of any length. */
export function toScriptAs(command: string, place: CommandPlace, as: As | undefined): string {
  if (as === undefined) return toScript(command, place);
  return toStarter([`exec 9< <(printf %s ${quoteWord(toText(command, place))})`], as);
}

/** How a command reaches execd, which has no input and takes texts that are one argument of bash. */
export interface Delivery {
  /** Scripts to be run before it, one after the other. */
  before: string[];
  script: string;
  /** Removes what those before left, should the script not be run. */
  clean: string | undefined;
}

/** Linux takes no longer argument (MAX_ARG_STRLEN: 128 KiB with its NUL), and execd's client marks it. */
const LONGEST_BYTES = 131_071 - MARK_BYTES;
/** In base64 well below that; each decodes by itself, as 3 divides it. */
const PIECE_BYTES = 90_000;

/**
 * What fits goes in the text itself, the rest through files in a folder of root's own, where nobody else can have put a link, and
 * that the script removes before it begins. It is in memory where there is such a place, so that no snapshot of the disk has it.
 */
export function toDelivery(
  command: string,
  place: CommandPlace,
  {
    as,
    stdin,
    name,
    framing,
  }: { as?: As | undefined; stdin?: Buffer | undefined; name: string; framing?: Framing | undefined },
): Delivery {
  const plain = toScript(command, place);
  const text = as === undefined ? plain : toText(command, place);
  const isPlain = as === undefined && stdin === undefined && framing === undefined;
  if (isPlain && fits(plain)) return { before: [], script: plain, clean: undefined };
  const input = stdin === undefined ? "" : ` < <(printf %s ${stdin.toString("base64")} | base64 -d)`;
  const script = toStarter([`exec 9< <(printf %s ${quoteWord(text)})${input}`], as, framing);
  if (fits(script)) return { before: [], script, clean: undefined };
  const folder = `${MEMORY}; f=$d/${name}`;
  const remove = 'rm -rf -- "$f"';
  return {
    before: [
      `${folder}; ${remove} && mkdir -m 700 -- "$f"`,
      ...pieces(Buffer.from(text)).map((piece) => `${folder}; ${toAppend('"$f/text"', piece)}`),
      ...pieces(stdin ?? Buffer.alloc(0)).map((piece) => `${folder}; ${toAppend('"$f/input"', piece)}`),
    ],
    script: toStarter(
      [folder, `exec 9<"$f/text"${stdin === undefined ? "" : ' <"$f/input"'} || exit 125`, remove],
      as,
      framing,
    ),
    clean: `${folder}; ${remove}`,
  };
}

const fits = (script: string) => Buffer.byteLength(script) <= LONGEST_BYTES;

const MEMORY = "d=/dev/shm; [ -d $d ] && [ -w $d ] || d=/tmp";

const toAppend = (file: string, piece: Buffer) =>
  `set -o pipefail; printf %s ${piece.toString("base64")} | base64 -d >>${file}`;

function pieces(bytes: Buffer): Buffer[] {
  const count = Math.ceil(bytes.length / PIECE_BYTES);
  return Array.from({ length: count }, (_, at) => bytes.subarray(at * PIECE_BYTES, (at + 1) * PIECE_BYTES));
}

/** Runs the text that it reads from descriptor 9. By `cat`: another user may read what he is handed, but not open it again. */
const RUN_TEXT = quoteWord('eval "exec 9<&-; $(cat <&9)"');

/** `open` makes descriptor 9 the text, and 0 its input. */
function toStarter(open: readonly string[], as: As | undefined, framing?: Framing): string {
  const own = as ? toSwitch(as) : [`set -- /bin/bash -c ${RUN_TEXT}`];
  const run = framing ? ['"$@"', framing.close] : ['exec "$@"'];
  return [...(framing ? [framing.open] : []), ...open, ...own, ...run].join("\n");
}

/**
 * Whichever tool there is, those first that stay in the process group, which is killed as a whole. What the user is
 * handed becomes his, else /dev/stdin and its like were closed to him; devices are everybody's and stay as they are.
 */
function toSwitch({ user, mark }: As): string[] {
  const refuse = (why: string) => `{ echo ${quoteWord(`${mark} ${why}`)} >&2; exit 126; }`;
  return [
    `u=${quoteWord(user)} h=~${user} b=${RUN_TEXT}`,
    `i=$(id -u -- "$u" 2>/dev/null) && case $h in "~"*) false ;; esac || ${refuse("no_user")}`,
    'if [ "$EUID" = "$i" ]; then set -- /bin/bash -c "$b"',
    `elif [ "$EUID" != 0 ]; then ${refuse("no_way")}`,
    'elif command -v runuser >/dev/null; then set -- runuser -u "$u" -- /bin/bash -c "$b"',
    "elif setpriv --help 2>/dev/null | grep -q -- --init-groups; then",
    '  set -- setpriv --reuid "$u" --regid "$(id -g -- "$u")" --init-groups /bin/bash -c "$b"',
    'elif command -v su >/dev/null; then set -- su -s /bin/bash "$u" -c "$b"',
    `else ${refuse("no_way")}; fi`,
    'for n in /proc/$$/fd/[0-2]; do { [ -p "$n" ] || [ -f "$n" ]; } && chown -- "$u" "$n" 2>/dev/null; done',
    'export HOME="$h" USER="$u" LOGNAME="$u" XDG_RUNTIME_DIR="/run/user/$i"',
  ];
}
