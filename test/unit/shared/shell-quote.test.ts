import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { quoteWord } from "../../../shared/shell-quote.ts";
import { anyText } from "../../any-text.ts";

/** Anything but NUL, which no argument can hold; what a shell would read most of all. */
const text = fc.oneof(
  fc.string({ unit: fc.constantFrom("'", '"', "\\", "$", "`", "\n", " ", ";", "&", "*", "!", "a", "é", "~", "(") }),
  anyText().filter((one) => !one.includes("\0")),
);

/** Where the shell stands: words that are quoted badly may write files. */
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "quote-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

test.each(["/bin/sh", "/bin/bash"])("a quoted word is one word of %s, and the same one", (shell) => {
  // Many at a time: a shell takes longer to start than to read them.
  fc.assert(
    fc.property(fc.array(text, { minLength: 200, maxLength: 200 }), (all) => {
      const script = `printf '%s\\0' ${all.map(quoteWord).join(" ")}`;
      const out = execFileSync(shell, ["-c", script], {
        encoding: "utf8",
        cwd: folder,
        stdio: ["ignore", "pipe", "pipe"],
      });
      expect(out.split("\0").slice(0, -1)).toEqual(all);
    }),
    { numRuns: 2 },
  );
});
