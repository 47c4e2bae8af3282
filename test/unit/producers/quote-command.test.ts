import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { quoteCommand } from "../../../producers/cli/quote-command.ts";
import { anyText } from "../../any-text.ts";

const run = promisify(execFile);

/** Where bash stands: words that are quoted badly may write files. */
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "quote-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** What bash reads back of some commands, one a line, NUL after each word. */
async function readBack(...commands: readonly (readonly string[])[]): Promise<string[]> {
  const lines = commands.map((words) => quoteCommand(["printf", "%s\\0", ...words]));
  const { stdout } = await run("bash", ["-c", lines.join("\n")], { encoding: "utf8", cwd: folder });
  return stdout.split("\0").slice(0, -1);
}

const anyWord = anyText(40).filter((text) => !text.includes("\0"));
const nasty = fc.stringMatching(/^['"`$\\!*?[\](){}<>|&;#~ \n\t=%-]{0,20}$/);

test("bash reads back the very same words", async () => {
  const command = fc.array(fc.oneof(anyWord, nasty), { minLength: 1, maxLength: 24 });
  // Many at a time: a shell takes longer to start than to read them.
  await fc.assert(
    fc.asyncProperty(fc.array(command, { minLength: 25, maxLength: 25 }), async (commands) => {
      expect(await readBack(...commands)).toEqual(commands.flat());
    }),
    { numRuns: 2 },
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
