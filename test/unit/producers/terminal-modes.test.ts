import { expect, test } from "vitest";
import { createTerminalModes } from "../../../producers/cli/terminal-modes.ts";

/** What takes back what these pieces did. */
const undoOf = (...pieces: string[]) => {
  const modes = createTerminalModes();
  for (const piece of pieces) modes.see(piece);
  return modes.undo();
};

test.each([
  ["text alone", ["plain\r\n"], ""],
  [
    "an editor with a mouse",
    ["\u001b[?1049h\u001b[?1002;1006h\u001b[?25l"],
    "\u001b[?1002l\u001b[?1006l\u001b[?25h\u001b[?1049l",
  ],
  ["one that ended", ["\u001b[?1049h\u001b[?25l", "\u001b[?25h\u001b[?1049l"], ""],
  ["a prompt, cut anywhere", ["x\u001b", "[?20", "04h$ "], "\u001b[?2004l"],
  ["colours", ["\u001b[1;31mred"], "\u001b[0m"],
  ["colours that ended", ["\u001b[1;31mred\u001b[0m \u001b[32mgreen\u001b[m"], ""],
  ["what nobody would notice", ["\u001b[?7h\u001b[4h\u001b[?12l"], ""],
])("%s", (_, pieces, undo) => expect(undoOf(...pieces)).toBe(undo));

test("what was taken back is not taken back again", () => {
  const modes = createTerminalModes();
  modes.see("\u001b[?25l\u001b[1m");
  expect(modes.undo()).toBe("\u001b[0m\u001b[?25h");
  expect(modes.undo()).toBe("");
});
