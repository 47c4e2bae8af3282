import { execFileSync } from "node:child_process";
import fc from "fast-check";
import { expect, test } from "vitest";
import { quoteWord } from "../../../shared/shell-quote.ts";
import { toScript } from "../../../workers/exec/shell.ts";

const bash = (script: string) =>
  execFileSync("/bin/bash", ["-c", script], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: "/bin:/usr/bin" },
  });

/** Anything but NUL, which no argument can hold; what a shell would read most of all. */
const text = fc.oneof(
  fc.string({ unit: fc.constantFrom("'", '"', "\\", "$", "`", "\n", " ", ";", "&", "*", "!", "a", "é", "~", "(") }),
  fc.string({ unit: "binary" }).filter((one) => !one.includes("\0") && one.isWellFormed()),
);

test("a quoted word is one word, and the same one", () => {
  const words = fc.array(text, { minLength: 20, maxLength: 40 });
  fc.assert(
    fc.property(words, (all) => {
      const out = bash(`printf '%s\\0' ${all.map(quoteWord).join(" ")}`);
      expect(out.split("\0").slice(0, -1)).toEqual(all);
    }),
    { numRuns: 10 },
  );
});

test("a script sets folder and environment, and nothing in them is run", () => {
  const env = { A: "$(touch /tmp/never)`id`", B: 'it\'s "fine"\nreally' };
  expect(bash(toScript('printf "%s|%s|%s|%s" "$A" "$B" "$PWD" "$HOME"', { env, cwd: "/usr" }))).toBe(
    `${env.A}|${env.B}|/usr|/root`,
  );
});

test("a folder that is not there ends it before the command", () => {
  expect(() => bash(toScript("echo ran", { cwd: "/no/such; echo ran" }))).toThrow(/status 1|failed/i);
});

test("a caller's environment comes over what every command has", () => {
  expect(bash(toScript('printf %s "$HOME"', { env: { HOME: "/home/x" } }))).toBe("/home/x");
});
