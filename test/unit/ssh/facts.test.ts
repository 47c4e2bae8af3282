import { expect, test } from "vitest";
import type { FleetErrorCode } from "../../../shared/errors.ts";
import { NodeName, Vmid } from "../../../shared/ids.ts";
import type { NodeCommand } from "../../../shared/node-commands.ts";
import { checkResult } from "../../../workers/ssh/failures.ts";
import { createTrust, fingerprintOf } from "../../../workers/ssh/host-trust.ts";
import { judgeProcess } from "../../../workers/ssh/node-tools.ts";

const UP = "5210.42 20100.11";
const stat = (pid: number, start: number, { name = "task UPID:pve1:", state = "S" } = {}) =>
  `${pid} (${name}) ${state} 1 ${pid} ${pid} 0 -1 4194624 9 0 0 0 1 0 0 0 20 0 1 0 ${start} 1 1`;

test.each<[string, string[], number | null, string]>([
  ["its worker runs", [UP, stat(100, 777), "100"], 0, "alive"],
  ["nothing of it is left", [UP], 1, "dead"],
  ["its number was given to another", [UP, stat(100, 778), "100"], 0, "dead"],
  ["its worker was killed, what it started runs on", [UP, "104", "105"], 0, "alive"],
  ["its worker is a zombie", [UP, stat(100, 777, { state: "Z" }), "100"], 0, "dead"],
  ["its worker is a zombie, what it started runs on", [UP, stat(100, 777, { state: "Z" }), "100", "104"], 0, "alive"],
  ["a name that looks like the fields after it", [UP, stat(100, 777, { name: "x) Z 1 (1" }), "100"], 0, "alive"],
  ["a login shell that talks", ["welcome", UP, stat(100, 777), "100"], 0, "alive"],
  ["/proc can't be read", [], 1, "unclear"],
  ["pgrep is missing", [UP], 127, "unclear"],
  ["pgrep was killed", [UP], null, "unclear"],
  ["pgrep found some and told none", [UP], 0, "unclear"],
  ["a stat that is cut off", [UP, "100 (task"], 1, "unclear"],
])("a task: %s", (_, lines, code, verdict) => {
  expect(judgeProcess(`${lines.join("\n")}\n`, code, { pid: 100, pstart: 777 })).toBe(verdict);
});

const node = NodeName.parse("pve1");
const vmid = Vmid.parse(20_001);
const exec: NodeCommand = { verb: "exec", vmid, script: "", timeoutMs: 1 };
const ended = (stderr: string, code: number | null = 255) => ({
  ...{ code, stdout: "", stderr, stdoutBytes: 0, stderrBytes: stderr.length },
  ...{ truncated: false, begun: false },
});

test.each<[NodeCommand, string, FleetErrorCode]>([
  [exec, "container '20001' not running!", "not_running"],
  [exec, "Configuration file 'nodes/pve1/lxc/20001.conf' does not exist", "container_missing"],
  [exec, "perl: warning: Setting locale failed.\ncontainer '20001' not running!\n", "not_running"],
  [exec, "fleet-ssh-guard: CT 20001 is a template", "pve_failed"], // not with the guard's code
  [exec, "", "pve_failed"],
  [{ verb: "unlock", vmid }, "can't lock file '/run/lock/lxc/pve-config-20001.lock' - got timeout", "container_locked"],
  [{ verb: "unlock", vmid }, "bash: line 1: pct: command not found", "pve_failed"],
  [{ verb: "state", vmid }, "20001 doesn't exist", "container_missing"],
  [{ verb: "process", pid: 1 }, "", "pve_failed"],
])("%o that ends with %j", (command, stderr, code) => {
  expect(() => checkResult(node, command, ended(stderr))).toThrow(expect.objectContaining({ code }));
});

test("what a node prints can't break a log's line", () => {
  expect(() => checkResult(node, exec, ended("a\u001b[31m\u0007b"))).toThrow("exec on node pve1: a?[31m?b");
});

test("the guard's no is an answer for good", () => {
  const no = ended("bash: warning\nfleet-ssh-guard: CT 500 is not within 20000-29999\n", 77);
  expect(() => checkResult(node, exec, no)).toThrow(
    expect.objectContaining({
      code: "ssh_refused",
      text: "the guard of node pve1 refused exec: CT 500 is not within 20000-29999",
    }),
  );
});

test("a pin belongs to its node alone", () => {
  const key = Buffer.from("\0\0\0\x0bssh-ed25519\0\0\0\x20", "latin1");
  const trustOf = createTrust(new Map([["pve1", [fingerprintOf(key)]]]), []);
  const place = { node, host: "10.0.0.1", port: 22 };
  expect(trustOf(place).refuse(key)).toBeNull();
  expect(trustOf({ ...place, node: NodeName.parse("pve2") }).refuse(key)).toMatchObject({
    code: "ssh_host_key_refused",
  });
});

test("known_hosts counts by address and by the node's name", () => {
  const key = Buffer.from("\0\0\0\x07ssh-rsa\0\0\0\x20", "latin1");
  const entry = { marker: null, names: "pve1", type: "ssh-rsa", key: key.toString("base64") };
  const trust = createTrust(new Map(), [entry])({ node, host: "10.0.0.1", port: 22 });
  expect([trust.types, trust.refuse(key)]).toEqual([["ssh-rsa"], null]);
  const other = createTrust(new Map(), [{ ...entry, names: "10.0.0.2" }])({ node, host: "10.0.0.1", port: 22 });
  expect(other.refuse(key)?.text).toContain("is unknown");
});
