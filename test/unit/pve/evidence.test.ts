import { expect, test } from "vitest";
import { evidenceOf } from "../../../workers/pve/evidence.ts";

const of = (method: string, path: string, status: number, reason = "") =>
  evidenceOf({ method, path }, { status, reason, body: "" });

test("what the asked host says for a node that it got no answer from", () => {
  for (const status of [595, 596, 599]) expect(of("GET", "/nodes/pve2/lxc/100/config", status)).toBe("dead");
  expect(of("POST", "/nodes/pve2/lxc/100/clone", 596)).toBe("dead");
});

test("an answer of the node's daemon, refusals included", () => {
  expect(of("POST", "/nodes/pve2/lxc/100/clone", 200)).toBe("alive");
  expect(of("POST", "/nodes/pve2/lxc/100/clone", 500, "CT is locked (disk)")).toBe("alive");
  expect(of("GET", "/nodes/pve2/lxc/100/status/current", 500, "Configuration file … does not exist")).toBe("alive");
  expect(of("GET", "/nodes/pve2/tasks/UPID:pve2:1:/status", 400, "no such task")).toBe("alive");
  expect(of("GET", "/nodes/pve2/lxc", 200)).toBe("alive");
});

test("nothing is known from what does not reach the daemon", () => {
  // Answered by the node's proxy, also while its daemon hangs.
  expect(of("GET", "/nodes/pve2/lxc/100/config", 200)).toBeNull();
  expect(of("GET", "/nodes/pve2/tasks", 200)).toBeNull();
  // Answered by the host that was asked.
  for (const status of [401, 403, 501]) expect(of("POST", "/nodes/pve2/lxc/100/clone", status)).toBeNull();
  expect(of("POST", "/nodes/gone/lxc/100/clone", 500, "hostname lookup 'gone' failed - …")).toBeNull();
  // Answered by something before PVE.
  for (const status of [302, 502, 503]) expect(of("POST", "/nodes/pve2/lxc/100/clone", status)).toBeNull();
});
