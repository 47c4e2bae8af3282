import { execFile } from "node:child_process";
import { promisify } from "node:util";
import fc from "fast-check";
import { expect, test } from "vitest";
import { quoteCommand } from "../../../producers/cli/quote-command.ts";

const run = promisify(execFile);

/** What bash reads back, NUL after each word. */
async function readBack(words: readonly string[]): Promise<string[]> {
  const command = quoteCommand(["printf", "%s\\0", ...words]);
  const { stdout } = await run("bash", ["-c", command], { encoding: "utf8" });
  return stdout.split("\0").slice(0, -1);
}

const anyWord = fc.string({ unit: "grapheme", maxLength: 40 }).filter((text) => !text.includes("\0"));
const nasty = fc.stringMatching(/^['"`$\\!*?[\](){}<>|&;#~ \n\t=%-]{0,20}$/);

test("bash reads back the very same words", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.oneof(anyWord, nasty), { minLength: 1, maxLength: 24 }), async (words) => {
      expect(await readBack(words)).toEqual(words);
    }),
    { numRuns: 50 },
  );
});

test("words keep from being reserved words, assignments, options of ours or nothing at all", async () => {
  const words = ["if", "A=1", "--json", "", "~", "*", "!!", "it's", "-n"];
  expect(await readBack(words)).toEqual(words);
});

test("one word is shell text, none is nothing", () => {
  expect(quoteCommand(["cd /tmp && ls | wc -l"])).toBe("cd /tmp && ls | wc -l");
  expect(quoteCommand([])).toBe("");
});
