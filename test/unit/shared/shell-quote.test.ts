import { execFileSync } from "node:child_process";
import fc from "fast-check";
import { expect, test } from "vitest";
import { quoteWord } from "../../../shared/shell-quote.ts";

/** Anything but NUL, which no argument can hold; what a shell would read most of all. */
const text = fc.oneof(
  fc.string({ unit: fc.constantFrom("'", '"', "\\", "$", "`", "\n", " ", ";", "&", "*", "!", "a", "é", "~", "(") }),
  fc.string({ unit: "binary" }).filter((one) => !one.includes("\0") && one.isWellFormed()),
);

test.each(["/bin/sh", "/bin/bash"])("a quoted word is one word of %s, and the same one", (shell) => {
  fc.assert(
    fc.property(fc.array(text, { minLength: 20, maxLength: 40 }), (all) => {
      const script = `printf '%s\\0' ${all.map(quoteWord).join(" ")}`;
      const out = execFileSync(shell, ["-c", script], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
      expect(out.split("\0").slice(0, -1)).toEqual(all);
    }),
    { numRuns: 10 },
  );
});
