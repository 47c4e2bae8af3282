/** Where the CLI writes, and how: colours for people at a terminal only, plain text in logs and pipes. */
import { once } from "node:events";
import { styleText } from "node:util";
import Table from "cli-table3";
import { EXIT } from "./exit-codes.ts";

export type Colour = "green" | "yellow" | "red" | "dim" | "bold";

export interface Terminal {
  out(text: string): void;
  err(text: string): void;
  /** Bytes on stdout, no faster than they are read there. */
  pour(content: AsyncIterable<Uint8Array>): Promise<void>;
  /** Resolves once whoever reads stdout is not far behind: what waits for him is kept in memory. */
  room(): Promise<void>;
  /** People watch stderr: progress may be shown there. */
  readonly watched: boolean;
  /** How many fit into a line that is redrawn: a longer one would be left behind in part each time. */
  readonly columns: number;
  /** On a watched stderr, in place of the line that was drawn last. */
  redraw(line: string): void;
  paint(colour: Colour, text: string): string;
  /** A terminal that is raw moves the cursor down at a line feed, and no more. */
  setRaw(raw: boolean): void;
  /** What is done, instead of leaving at once, when whoever read has gone. */
  whenBroken(leave: () => void): void;
}

/** A stream as far as it is needed here. */
export interface Stream extends NodeJS.EventEmitter {
  write(data: string | Uint8Array): unknown;
  readonly isTTY?: boolean;
  readonly writableLength?: number;
  readonly columns?: number;
}

/** Back to the line's begin, and erase it (ECMA-48 EL). */
export const CLEAR_LINE = "\r\u001b[K";

/** A reader that is slow for a while misses nothing, and one that stops takes no more than that. */
const WAITING_BYTES = 64 * 1_048_576;

export function createTerminal(
  streams: { stdout: Stream; stderr: Stream },
  env: Readonly<Record<string, string | undefined>>,
  exit: (code: number) => void,
): Terminal {
  const { stdout, stderr } = streams;
  let leave = () => exit(EXIT.brokenPipe);
  for (const stream of [stdout, stderr]) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      // Whoever read has gone, as after `| head`: end as a program does that SIGPIPE ends.
      if (error.code === "EPIPE") leave();
      else throw error;
    });
  }
  // https://no-color.org: set and not empty.
  let raw = false;
  const columns = () => (stderr.columns || 80) - 1; // the cursor stands behind it
  const coloured = stdout.isTTY === true && !env["NO_COLOR"];
  return {
    out: (text) => void stdout.write(text),
    err: (text) => void stderr.write(raw ? text.replaceAll(/\r?\n/g, "\r\n") : text),
    async pour(content) {
      for await (const piece of content) if (stdout.write(piece) === false) await once(stdout, "drain");
    },
    async room() {
      if ((stdout.writableLength ?? 0) > WAITING_BYTES) await once(stdout, "drain");
    },
    watched: stderr.isTTY === true && env["TERM"] !== "dumb",
    get columns() {
      return columns();
    },
    redraw: (line) => void stderr.write(CLEAR_LINE + line.slice(0, columns())),
    setRaw: (now) => {
      raw = now;
    },
    whenBroken: (instead) => {
      leave = instead;
    },
    paint: (colour, text) => (coloured ? styleText(colour, text, { validateStream: false }) : text),
  };
}

const NO_BORDERS = Object.fromEntries(
  ["top", "bottom", "left", "right", "mid"].flatMap((side) =>
    [side, `${side}-mid`, `${side}-left`, `${side}-right`, `mid-mid`].map((name) => [name, ""]),
  ),
);

/** Columns with a head, two spaces apart and without borders: reads well in a log and is easy to cut. */
export function formatTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const table = new Table({
    head: [...head],
    chars: { ...NO_BORDERS, middle: "  ", "left-mid": "", "right-mid": "" },
    style: { "padding-left": 0, "padding-right": 0, head: [], border: [], compact: true },
  });
  table.push(...rows.map((row) => row.map(toPrintable)));
  return `${table
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n")}\n`;
}

const ESCAPE = "\u001b";

/** Texts come from users and guests too: of what could drive a terminal or break a line, only our colours stay. */
export const toPrintable = (text: string): string =>
  text.replace(/(\p{Cc})(\[\d+m)?/gu, (all, control: string, colour: string | undefined) =>
    control === ESCAPE && colour !== undefined ? all : ` ${colour ?? ""}`,
  );

/** Names and values, one a line. */
export function formatFacts(facts: readonly (readonly [string, string])[]): string {
  const width = Math.max(0, ...facts.map(([name]) => toPrintable(name).length));
  return facts.map(([name, value]) => `${toPrintable(name).padEnd(width)}  ${toPrintable(value)}\n`).join("");
}
