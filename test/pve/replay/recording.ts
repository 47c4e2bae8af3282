/** One exchange of a recording, with the outcome of its task where that was recorded too. */
export interface Exchanged {
  kind: "exchange";
  key: string;
  method: string;
  path: string;
  params: Record<string, string>;
  status: number;
  reason: string;
  body: string;
}

/** The final status of a task, and some lines of its log. */
export interface Ended {
  kind: "status";
  upid: string;
  body: string;
  lines: string[];
}

/** A heading or remark: what is going to be tried. */
export interface Note {
  kind: "note";
  text: string;
}

export type Recorded = Exchanged | Ended | Note;

const EXCHANGE = /^(GET|POST|PUT|DELETE) (\S+) (.*?) ?-> HTTP\/1\.1 (\d+) (.*?) \[[\d.]+s?\]$/;

/** "a=1 b=two words c=x" */
function parseParams(text: string): Record<string, string> {
  const params: Record<string, string> = {};
  for (const part of text.split(/ (?=[\w-]+=)/)) {
    const at = part.indexOf("=");
    if (at > 0) params[part.slice(0, at).trim()] = part.slice(at + 1);
  }
  return params;
}

/** Reads one file of recordings. Lines that are neither of the known forms are left alone. */
export function parseRecording(text: string): Recorded[] {
  const found: Recorded[] = [];
  const lines = text.split("\n");
  let status: Ended | undefined;
  for (const [index, line] of lines.entries()) {
    const match = EXCHANGE.exec(line);
    const log = /^ {3}\| (.*)$/.exec(line)?.[1];
    if (match !== null) {
      const [, method = "", path = "", params = "", code = "", reason = ""] = match;
      const body = lines[index + 1] ?? "";
      const key = `${method} ${path}${params === "" ? "" : ` ${params.trim()}`}`;
      found.push({
        kind: "exchange",
        key,
        method,
        path,
        params: parseParams(params),
        status: Number(code),
        reason,
        body,
      });
      status = undefined;
    } else if (line.startsWith("STATUS ")) {
      const body = line.slice(7);
      status = { kind: "status", upid: /"upid":"([^"]+)"/.exec(body)?.[1] ?? "", body, lines: [] };
      found.push(status);
    } else if (log !== undefined) {
      status?.lines.push(log);
      // A killed task has no more lines; what follows is of a task that was not recorded.
      if (log === "no content") status = undefined;
    } else if (/^(#####|--|==) /.test(line)) found.push({ kind: "note", text: line.replace(/^\S+ /, "") });
    else if (line.startsWith("   WALL")) status = undefined;
  }
  return found;
}

/** The notes, exchanges and statuses from one note on to the next "#####". */
export function section(recorded: readonly Recorded[], from: string, to?: string): Recorded[] {
  const start = recorded.findIndex((entry) => entry.kind === "note" && entry.text.startsWith(from));
  if (start < 0) throw new Error(`the recording has no part "${from}"`);
  const end = recorded.findIndex(
    (entry, index) => index > start && entry.kind === "note" && to !== undefined && entry.text.startsWith(to),
  );
  return recorded.slice(start, end < 0 ? undefined : end);
}

/** "-- remark" followed by a status line and nothing else of an exchange: what each Authorization header got. */
export function parseRefusals(text: string): { title: string; status: number; reason: string }[] {
  return [...text.matchAll(/^-- (.*)\nHTTP\/1\.1 (\d{3}) (.*)$/gm)].map(([, title = "", status, reason = ""]) => ({
    title,
    status: Number(status),
    reason,
  }));
}
