import { execFileSync } from "node:child_process";
import { expect, test } from "vitest";
import { toScript } from "../../../workers/exec/shell.ts";

const bash = (script: string) =>
  execFileSync("/bin/bash", ["-c", script], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: "/bin:/usr/bin" },
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
