/** What is typed into a shell, sent in order, each byte once; and the signs of life that keep it open. */
import { setTimeout as pause } from "node:timers/promises";
import { FleetError } from "../shared/errors.ts";
import { TerminalSize } from "../shared/jobs/shell.ts";
import { INPUT_ENTRY_BYTES, type InputOutcome, type ShellInput } from "../shared/state/shell-input.ts";
import type { EndWatch } from "./end-watch.ts";
import type { Parts } from "./parts.ts";

/** What can be typed into. Each resolves once it is stored, with false where the shell has ended. */
export interface Typing {
  /** What a terminal sends, control characters included. Throws `canceled` when another process types there since. */
  write(input: string | Uint8Array): Promise<boolean>;
  resize(cols: number, rows: number): Promise<boolean>;
  /** Hangs up: what runs on the terminal ends, and `result()` says so. */
  close(): Promise<boolean>;
}

const REDIS_AWAY_MS = 300;
const FULL_MS = 50;

/** `aliveMs`: gives a sign of life each so many ms until it has ended or the client is closed. */
export function createTyping(parts: Parts, ends: EndWatch, id: string, aliveMs: number | undefined): Typing {
  const epoch = Date.now();
  let count = 0;
  let over = false;
  let waiting = Buffer.alloc(0);
  let last: Promise<boolean> = Promise.resolve(true);

  const send = async (input: ShellInput): Promise<boolean> => {
    const entry = `${epoch}-${++count}`;
    while (!over) {
      const outcome = await store(entry, input);
      if (outcome === "ok") return true;
      if (outcome === "ended") over = true;
      else if (outcome === "superseded")
        throw new FleetError("canceled", `another process types into ${id} now`, { facts: { operation: id } });
      else await pause(outcome === "full" ? FULL_MS : REDIS_AWAY_MS);
    }
    return false;
  };
  /** The same entry may be sent again after an outage: it is stored once. */
  const store = async (entry: string, input: ShellInput): Promise<InputOutcome | "away"> => {
    try {
      const { shellInputs, link } = parts;
      return await shellInputs.add(id, entry, input, link.request);
    } catch (error) {
      if (error instanceof FleetError && error.code === "redis_unavailable") return "away";
      throw error;
    }
  };
  const inOrder = (work: () => Promise<boolean>): Promise<boolean> => {
    last = last.catch(() => false).then(work);
    return last;
  };
  /** What was typed meanwhile goes along. */
  const flush = async (): Promise<boolean> => {
    let stored = !over;
    while (waiting.length > 0 && stored) {
      const bytes = waiting.subarray(0, INPUT_ENTRY_BYTES);
      waiting = waiting.subarray(bytes.length);
      stored = await send({ kind: "bytes", bytes });
    }
    return stored;
  };
  if (aliveMs !== undefined) {
    const beat = setInterval(() => {
      inOrder(() => send({ kind: "alive" })).catch(() => {}); // who types hears of it
    }, aliveMs);
    const stop = () => {
      over = true;
      clearInterval(beat);
    };
    ends.wait(id, { timeoutMs: Number.POSITIVE_INFINITY }).then(stop, stop);
  }
  return {
    write(input) {
      waiting = Buffer.concat([waiting, typeof input === "string" ? Buffer.from(input) : input]);
      return inOrder(flush);
    },
    async resize(cols, rows) {
      const size = { cols: TerminalSize.parse(cols), rows: TerminalSize.parse(rows) };
      return inOrder(() => send({ kind: "size", ...size }));
    },
    close: () => inOrder(() => send({ kind: "close" })),
  };
}
