/** Bad weather in PVE during a provision: it heals, with exactly one container in the end. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { FleetErrorCode } from "../../../shared/errors.ts";
import type { FaultHandle, Pve } from "../../pve/index.ts";
import { type Bed, firstFailure, startBed, within } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 2, timings: { unreachableDelay: 30, hungTimeout: 100 } } });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const CLONE = { method: "POST", path: "/clone$" };
const START = { method: "POST", path: "/status/start$" };
const CONFIG = { method: "PUT", path: "/lxc/2\\d+/config$" };
const TASK_STATUS = { method: "GET", path: "/tasks/.*/status$" };
const NEW_CONFIG = { method: "GET", path: "/lxc/2\\d+/config$" };

/** What goes wrong, and the error of the run that met it; null where the run itself gets over it. */
const WEATHER: Record<string, { arm: (pve: Pve) => FaultHandle; meets: FleetErrorCode | null }> = {
  "clone executed, reply lost (596)": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "lose-reply", as: 596 }),
    meets: "outcome_unknown",
  },
  "clone executed, reply lost (595)": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "lose-reply", as: 595 }),
    meets: "outcome_unknown",
  },
  "clone executed, connection cut": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "lose-reply", as: "cut" }),
    meets: "outcome_unknown",
  },
  "clone not executed, connection cut": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "cut" }),
    meets: "outcome_unknown",
  },
  "clone answered with a page of HTML": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "html" }),
    meets: "outcome_unknown",
  },
  "clone answered with nothing": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "empty" }),
    meets: "outcome_unknown",
  },
  "clone answered with a proxy's 502 page": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "html", status: 502 }),
    meets: "outcome_unknown",
  },
  "start answered with nothing": {
    arm: ({ faults }) => faults.request({ ...START, kind: "empty" }),
    meets: "outcome_unknown",
  },
  "config answered with a proxy's 503 page": {
    arm: ({ faults }) => faults.request({ ...CONFIG, kind: "html", status: 503 }),
    meets: "outcome_unknown",
  },
  "a task status answered with a proxy's 502 page, then with nothing": {
    arm: ({ faults }) => {
      faults.request({ ...TASK_STATUS, kind: "html", status: 502 });
      return faults.request({ ...TASK_STATUS, kind: "empty" });
    },
    meets: null,
  },
  "clone task fails": {
    arm: ({ faults }) => faults.task({ type: "vzclone", text: "clone failed: I/O error" }),
    meets: "task_failed",
  },
  "clone finds no room, and is placed again": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "refuse", status: 500, text: "no space left on device" }),
    meets: "storage_full",
  },
  "clone meets a passing trouble": {
    arm: ({ faults }) => faults.request({ ...CLONE, kind: "refuse", status: 500, text: "temporary failure" }),
    meets: "pve_failed",
  },
  "clone warns, which is a success": {
    arm: ({ faults }) => faults.task({ type: "vzclone", warnings: ["thin pool is getting full"] }),
    meets: null,
  },
  "start executed, reply lost": {
    arm: ({ faults }) => faults.request({ ...START, kind: "lose-reply", as: 596 }),
    meets: "outcome_unknown",
  },
  "start task fails": {
    arm: ({ faults }) => faults.task({ type: "vzstart", text: "startup for container '1' failed" }),
    meets: "start_failed",
  },
  "config executed, reply lost": {
    arm: ({ faults }) => faults.request({ ...CONFIG, kind: "lose-reply", as: "cut" }),
    meets: "outcome_unknown",
  },
  "config finds the file locked": {
    arm: ({ faults }) =>
      faults.request({
        ...CONFIG,
        kind: "refuse",
        status: 500,
        text: "can't lock file '/run/lock/lxc/pve-config-20000.lock' - got timeout",
      }),
    meets: "container_locked",
  },
  "a look answered with a page of HTML": {
    // The first look is only taken early; it is taken again when it matters.
    arm: ({ faults }) => faults.request({ ...NEW_CONFIG, kind: "html", times: 2 }),
    meets: "pve_bad_reply",
  },
  "a look cut once is sent again": {
    arm: ({ faults }) => faults.request({ ...NEW_CONFIG, kind: "cut" }),
    meets: null,
  },
  "a task status lost on the way": {
    arm: ({ faults }) => faults.request({ ...TASK_STATUS, kind: "lose-reply", as: 596, times: 2 }),
    meets: null,
  },
  "a task status that comes late": {
    arm: ({ faults }) => faults.request({ ...TASK_STATUS, kind: "delay", ms: 400 }),
    meets: null,
  },
};

test.each(Object.entries(WEATHER))("%s", async (_, { arm, meets }) => {
  const fault = arm(bed.pve);
  const handle = await bed.fleet.provision({ template: "cmux-base", cores: 1 });
  if (meets) expect(await firstFailure(handle)).toBe(meets);
  const { vmid, node, sandboxId } = await handle.result({ timeoutMs: 60_000 });
  expect(fault.hits).toBeGreaterThan(0);
  expect((await handle.status()).attempts).toBe(meets ? 1 : 0);
  const made = bed.pve.containers().filter(({ config }) => config["description"]?.includes(sandboxId));
  expect(made).toMatchObject([{ vmid, node, status: "running", config: { cores: "1" } }]);
});

test("a node that goes down in the middle: it waits, and goes on when the node is back", async () => {
  bed.pve.faults.request({ kind: "delay", ms: 50, ...CONFIG });
  const handle = await bed.fleet.provision({ template: "cmux-base", node: "pve2", cores: 1 });
  await bed.pve.waitForTask(({ type, node }) => type === "vzclone" && node === "pve2", within());
  bed.pve.faults.node("pve2", "unreachable");
  expect(await firstFailure(handle)).toMatch(/node_unreachable|outcome_unknown/);
  bed.pve.faults.node("pve2", "online");
  expect((await handle.result({ timeoutMs: 60_000 })).node).toBe("pve2");
});

test("a template locked by a backup: it waits, and goes on when the lock is gone", async () => {
  bed.pve.faults.lock(9_001, "backup");
  const handle = await bed.fleet.provision({ template: 9_001 });
  expect(await firstFailure(handle)).toBe("source_locked");
  expect((await handle.status()).waitingFor).toBe("retry after source_locked");
  bed.pve.faults.lock(9_001, null);
  await handle.result({ timeoutMs: 60_000 });
});

test("a container that vanishes while it is made is made again", async () => {
  bed.pve.faults.request({ kind: "delay", ms: 100, ...CONFIG });
  const before = new Set(bed.pve.tasks().map(({ upid }) => upid));
  const handle = await bed.fleet.provision({ template: "cmux-base", cores: 1 });
  const clone = await bed.pve.waitForTask(({ type, upid }) => type === "vzclone" && !before.has(upid), within());
  bed.pve.faults.vanish(clone.target ?? 0);
  const { sandboxId } = await handle.result({ timeoutMs: 60_000 });
  const made = bed.pve.containers().filter(({ config }) => config["description"]?.includes(sandboxId));
  expect(made).toMatchObject([{ status: "running", config: { cores: "1" } }]);
});
