/**
 * Output as it is, through a daemon that tells of it in lines: execd drops blank ones and `\r`, a last line without an end looks
 * like any other, and where both streams come at once its reply breaks now and then, since it writes them unlocked. So both go
 * through its stdout, each line between signs that say whose it is, and a mark follows what the command printed last.
 */
import { quoteWord } from "../../shared/shell-quote.ts";
import type { StreamName } from "../../shared/state/output.ts";

export interface Framing {
  /** Shell text before the command; it and what follows share their variables. Where a sandbox has no sed, or BusyBox's, its lines come as they do otherwise. */
  open: string;
  /** After it, with its exit code in `$?`. */
  close: string;
  /** A line of execd's stdout → what was printed, and where. */
  read(line: string): { stream: StreamName; text: string };
}

const SIGNS = { stdout: "1<", stderr: "2<" } as const;
const toSed = (sign: string) => `LC_ALL=C exec sed -u -e 's/^/${sign}/' -e 's/$/>/'`;
/** The second takes what execd has as stdout, and so comes first. */
const SPLIT = `exec 2> >(${toSed(SIGNS.stderr)}) > >(${toSed(SIGNS.stdout)})`;

/** BusyBox's is a link, and may not know `-u`. */
const HAS_SED = `hash sed 2>/dev/null && [ ! -L "\${BASH_CMDS[sed]}" ]`;

/** Pure. `name` tells its mark from what a command prints. */
export function createFraming(name: string): Framing {
  const mark = `${name}|end`;
  return {
    open: `mark=; if ${HAS_SED}; then mark=${quoteWord(mark)}; ${SPLIT}; fi`,
    close: 'code=$?; [ -z "$mark" ] || { printf "%s\\n" "$mark"; printf "%s\\n" "$mark" >&2; }; exit "$code"',
    read(line) {
      const stream = line.startsWith(SIGNS.stderr) ? "stderr" : "stdout";
      if (!line.startsWith(SIGNS[stream]) || !line.endsWith(">")) return { stream: "stdout", text: `${line}\n` };
      const text = line.slice(SIGNS[stream].length, -1);
      return { stream, text: text.endsWith(mark) ? text.slice(0, -mark.length) : `${text.replace(mark, "")}\n` };
    },
  };
}
