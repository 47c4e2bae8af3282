import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { createFraming } from "../../../workers/exec/framing.ts";
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

test("output between signs is read back as it was; where sed is none, or may be BusyBox's, it comes without them", () => {
  const framing = createFraming("op_x");
  const framed = (command: string, path = process.env["PATH"]) => {
    const script = `PATH=${path}\n${framing.open}\n${command}\n${framing.close}`;
    const lines = execFileSync("/bin/bash", ["-c", script], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    const printed = lines.replace(/\n$/, "").split("\n").map(framing.read);
    return ["stdout", "stderr"].map((name) =>
      printed.map(({ stream, text }) => (stream === name ? text : "")).join(""),
    );
  };
  expect(framed("printf '\\n\\xff<\\r\\n>'; echo oh >&2")).toEqual(["\n\uFFFD<\r\n>", "oh\n"]);
  expect(framed("echo a; (sleep 0.2; echo later) & disown")).toEqual(["a\nlater\n", ""]);
  expect(framed("echo a", "/nowhere")).toEqual(["a\n", ""]);
  const folder = mkdtempSync(join(tmpdir(), "links-"));
  symlinkSync("/bin/true", join(folder, "sed"));
  expect(framed("echo a", folder)).toEqual(["a\n", ""]);
  rmSync(folder, { recursive: true });
});
