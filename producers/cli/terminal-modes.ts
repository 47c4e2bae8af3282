/** What a program that is cut off leaves a terminal in, from what it wrote: pure. */

/** Modes of DECSET that people would notice afterwards, and whether each is on by itself; the screen comes last. */
const USUAL: ReadonlyMap<string, boolean> = new Map([
  ...["1", "9", "1000", "1002", "1003", "1004", "1005", "1006", "1015", "2004"].map((mode) => [mode, false] as const),
  ["25", true],
  ...["47", "1047", "1049"].map((mode) => [mode, false] as const),
]);

// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what they look for
const SEQUENCE = /\u001b\[(\??)([\d;]*)([hlm])/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what they look for
const UNFINISHED = /\u001b(\[\??[\d;]{0,32})?$/;

export interface TerminalModes {
  /** Pieces of what is shown, in order. */
  see(text: string): void;
  /** What takes back all that differs from the usual, which is then forgotten. */
  undo(): string;
}

export function createTerminalModes(): TerminalModes {
  const changed = new Set<string>();
  let styled = false;
  let rest = "";
  return {
    see(text) {
      const all = rest + text;
      rest = UNFINISHED.exec(all)?.[0] ?? "";
      for (const [, isPrivate, numbers = "", letter] of all.matchAll(SEQUENCE)) {
        if (letter === "m") styled = !isPrivate && !/^0*$/.test(numbers);
        else if (isPrivate) for (const mode of numbers.split(";")) set(changed, mode, letter === "h");
      }
    },
    undo() {
      const modes = [...USUAL].filter(([mode]) => changed.has(mode));
      const text = modes.map(([mode, usual]) => `\u001b[?${mode}${usual ? "h" : "l"}`).join("");
      const plain = styled ? "\u001b[0m" : "";
      changed.clear();
      styled = false;
      return plain + text;
    },
  };
}

function set(changed: Set<string>, mode: string, on: boolean): void {
  const usual = USUAL.get(mode);
  if (usual === undefined) return;
  if (on === usual) changed.delete(mode);
  else changed.add(mode);
}
