import { execFileSync } from "node:child_process";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Vmid } from "../../../shared/ids.ts";
import {
  EXEC_BOOT,
  EXEC_SHELL,
  type NodeCommand,
  SHELL_BOOT,
  toCommandInput,
  toCommandLine,
} from "../../../shared/node-commands.ts";

const vmid = Vmid.parse(20_001);

test("each verb's line", () => {
  const lines = (["freeze", "unfreeze", "state", "unlock"] as const).map((verb) => toCommandLine({ verb, vmid }));
  expect(lines).toEqual([
    "read -r go && exec lxc-freeze -n 20001",
    "read -r go && exec lxc-unfreeze -n 20001",
    "lxc-info -s -H -n 20001",
    "read -r go && exec pct unlock 20001",
  ]);
  expect(toCommandLine({ verb: "process", pid: 4_711 })).toBe(
    "exec 2>/dev/null; pid=4711; cat /proc/uptime /proc/$pid/stat; pgrep -s $pid",
  );
});

test("a shell takes the line of exec as pct's words, whatever the script is", () => {
  const hostile = fc.constantFrom("'; id; '", '"$(id)"', "`id`", "a\nb\0c", "\\", "é\u{1f600}\ud800", "!!", "");
  const scripts = fc.sample(fc.oneof(fc.string(), hostile), 50);
  const lines = scripts.map((script) => toCommandLine({ verb: "exec", vmid, script, timeoutMs: 1 }));
  // One shell for all of them: starting it takes longest.
  const echo = ["pct() { printf '%s\\0' \"$@\" end; }", ...lines].join("\n");
  const said = execFileSync("/bin/sh", ["-c", echo], { encoding: "utf8" }).split("end\0").slice(0, -1);
  const words = ["exec", "20001", "--", "/bin/bash", "-c", EXEC_BOOT, "fleet-exec", EXEC_SHELL];
  expect(said.map((one) => one.split("\0").slice(0, -1))).toEqual(scripts.map(() => words));
});

test("the guard compares the boot text in single quotes, so it holds none", () => {
  expect(`${EXEC_BOOT}${EXEC_SHELL}${SHELL_BOOT}`).not.toContain("'");
});

test("nothing but a whole positive number ever gets into a line", () => {
  // What a cast or a bad parse could let through.
  const anything = fc.oneof(fc.double(), fc.anything(), fc.string(), fc.constantFrom("1;id", "20001", [20_001], -0, 0));
  const verb = fc.constantFrom("exec", "shell", "freeze", "unfreeze", "state", "unlock", "process");
  const shape =
    /^(pct exec \d+ -- \/bin\/bash -c '[^']+'( fleet-exec '[^']+')?|read -r go && exec (lxc-(un)?freeze -n|pct unlock) \d+|lxc-info -s -H -n \d+|exec 2>\/dev\/null; pid=\d+; cat \/proc\/uptime \/proc\/\$pid\/stat; pgrep -s \$pid)$/;
  fc.assert(
    fc.property(verb, anything, (which, value) => {
      let line: string;
      try {
        line = toCommandLine({ verb: which, vmid: value, pid: value, script: "", timeoutMs: 1 } as NodeCommand);
      } catch (error) {
        expect(error).toMatchObject({ code: "invalid_input" });
        return;
      }
      expect(line).toMatch(shape);
    }),
    { numRuns: 500 },
  );
});

test("script and input travel as NUL-ended fields; only exec's stdin stays open", () => {
  const exec = toCommandInput({ verb: "exec", vmid, script: "echo ä", timeoutMs: 1_500 }, Buffer.from([0, 255]));
  expect(exec).toEqual({ bytes: Buffer.from("1.500\0echo ä\0AP8=\0"), held: true });
  expect(toCommandInput({ verb: "exec", vmid, script: "", timeoutMs: 0 }).bytes.toString()).toMatch(/^31536000\.000\0/);
  expect(() => toCommandInput({ verb: "exec", vmid, script: "a\0b", timeoutMs: 1 })).toThrow("NUL");
  expect(toCommandInput({ verb: "freeze", vmid })).toEqual({ bytes: Buffer.from("go\n"), held: false });
  expect(toCommandInput({ verb: "state", vmid })).toEqual({ bytes: Buffer.alloc(0), held: false });
});
