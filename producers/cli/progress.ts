/** One line on a watched stderr that says what the sandboxes are doing. */
import type { Fleet, Handle, JobName, SandboxState } from "../index.ts";
import { CLEAR_LINE, type Terminal, toPrintable } from "./terminal.ts";

/** A line on stderr that stays, above one that is redrawn. */
export const note = ({ err, watched }: Terminal, text: string): void => err(`${watched ? CLEAR_LINE : ""}${text}\n`);

/** Shows nothing where nobody watches or nothing is waited for. Disposing clears the line. */
export function startProgress(
  fleet: Fleet,
  terminal: Terminal,
  handles: readonly Pick<Handle<JobName>, "id" | "sandboxId" | "kind">[],
): AsyncDisposable {
  const [first] = handles;
  if (!first || !terminal.watched) return { [Symbol.asyncDispose]: async () => {} };
  const states = new Map<string, SandboxState | "ended" | "waiting">(handles.map(({ id }) => [id, "waiting"]));
  const draw = () => terminal.redraw(toProgressLine(first, [...states.values()]));
  const stop = new AbortController();
  draw();
  const done = (async () => {
    for await (const event of fleet.events({ signal: stop.signal })) {
      if (!states.has(event.operation) || event.type === "operation.accepted") continue;
      states.set(event.operation, event.type === "sandbox.changed" ? event.data.state : "ended");
      draw();
    }
  })().catch(() => {}); // only the show ends; what is waited for reports its own errors
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await done;
      terminal.redraw("");
    },
  };
}

/** Pure; one operation by its sandbox, several by how many are where. */
export function toProgressLine(
  first: { kind: JobName; sandboxId: string },
  states: readonly (SandboxState | "ended" | "waiting")[],
): string {
  const counts = new Map<string, number>();
  for (const state of states) counts.set(state, (counts.get(state) ?? 0) + 1);
  if (states.length === 1) return `${first.kind} ${first.sandboxId}: ${states[0]}`;
  const parts = [...counts].map(([state, count]) => `${count} ${state}`);
  return `${first.kind} of ${states.length}: ${parts.join(", ")}`;
}

/** Of redrawing a count. */
const REDRAW_MS = 100;

/** Passes a content on, and shows on a watched terminal how much has passed. */
export async function* startCount(
  { terminal, json }: { terminal: Terminal; json: boolean },
  what: string,
  content: AsyncIterable<Uint8Array>,
  total?: number,
): AsyncGenerator<Uint8Array, void> {
  const shown = terminal.watched && !json;
  let bytes = 0;
  let drawnAt = Number.NEGATIVE_INFINITY;
  try {
    for await (const piece of content) {
      yield piece;
      bytes += piece.length;
      if (!shown || performance.now() - drawnAt < REDRAW_MS) continue;
      drawnAt = performance.now();
      const share = total === undefined ? "" : ` of ${toMib(total)}`;
      terminal.redraw(`${toPrintable(what)}: ${toMib(bytes)}${share} MiB`);
    }
  } finally {
    if (shown) terminal.redraw("");
  }
}

const toMib = (bytes: number): string => (bytes / 1_048_576).toFixed(1);
