/** Start, stop, shut down and reboot. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import {
  type Bed,
  containerOf,
  failure,
  firstFailure,
  provisionOne,
  run,
  startBed,
  useUpAttempts,
  useUpTime,
} from "./harness.ts";

let bed: Bed;
let box: Awaited<ReturnType<typeof provisionOne>>;
beforeAll(async () => {
  bed = await startBed({
    pve: { nodes: 1, templates: [{ name: "cmux-base" }, { name: "deaf", guest: { ignoresShutdown: true } }] },
  });
  box = await provisionOne(bed.fleet);
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

type Action = "start" | "stop" | "shutdown" | "reboot" | "pause" | "resume";
const power = (action: Action, more: object = {}) =>
  run(bed.fleet, "power", { sandboxId: box.sandboxId, action, ...more });
const stateOf = async (sandboxId: string) => (await bed.fleet.sandboxes.get(sandboxId)).state;

test("each action does what it says; one that is true already changes nothing", async () => {
  const steps: [Action, { state: string; changed: boolean }][] = [
    ["start", { state: "running", changed: false }],
    ["stop", { state: "stopped", changed: true }],
    ["stop", { state: "stopped", changed: false }],
    ["shutdown", { state: "stopped", changed: false }],
    ["start", { state: "running", changed: true }],
    ["shutdown", { state: "stopped", changed: true }],
    ["reboot", { state: "running", changed: true }],
    ["reboot", { state: "running", changed: true }],
  ];
  for (const [action, expected] of steps) {
    expect(await power(action), action).toEqual(expected);
    expect(containerOf(bed, box.vmid)?.status, action).toBe(expected.state);
    expect(await stateOf(box.sandboxId), action).toBe(expected.state);
  }
  const { stdout } = await run(bed.fleet, "exec", { sandboxId: box.sandboxId, command: "echo up" });
  expect(stdout).toBe("up\n");
});

describe("a guest that ignores a shutdown", () => {
  test("is stopped hard after its grace", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "deaf" });
    const result = await run(bed.fleet, "power", { sandboxId, action: "shutdown", graceSec: 1 });
    expect(result).toEqual({ state: "stopped", changed: true });
    expect(containerOf(bed, vmid)?.status).toBe("stopped");
  });

  test("stays up when it may not be forced", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet, { template: "deaf" });
    const handle = await bed.fleet.power({ sandboxId, action: "shutdown", graceSec: 1, force: false });
    await failure(handle.result({ timeoutMs: 60_000 }), "shutdown_refused");
    expect(containerOf(bed, vmid)?.status).toBe("running");
    expect(await stateOf(sandboxId)).toBe("running");
  });
});

test("refused on what is unknown or gone", async () => {
  await failure(bed.fleet.power({ sandboxId: "sbx_0000000000000000", action: "stop" }), "sandbox_not_found");
  const { sandboxId } = await provisionOne(bed.fleet);
  await run(bed.fleet, "destroy", { sandboxId });
  await failure(bed.fleet.power({ sandboxId, action: "stop" }), "sandbox_gone");
});

describe("bad weather", () => {
  const at = (action: Action) => ({ method: "POST", path: `/status/${action}$` });
  const { faults } = { faults: () => bed.pve.faults };
  test.each([
    [
      "stop executed, reply lost",
      "stop",
      () => faults().request({ ...at("stop"), kind: "lose-reply", as: 596 }),
      "outcome_unknown",
    ],
    ["stop cut", "stop", () => faults().request({ ...at("stop"), kind: "cut" }), "outcome_unknown"],
    [
      "start task fails",
      "start",
      () => faults().task({ type: "vzstart", text: "startup for container '1' failed" }),
      "start_failed",
    ],
    ["start answered with HTML", "start", () => faults().request({ ...at("start"), kind: "html" }), "outcome_unknown"],
    [
      "shutdown task fails",
      "shutdown",
      () => faults().task({ type: "vzshutdown", text: "lxc-stop said no" }),
      "task_failed",
    ],
    [
      "start executed, reply lost",
      "start",
      () => faults().request({ ...at("start"), kind: "lose-reply", as: "cut" }),
      "outcome_unknown",
    ],
    ["reboot cut", "reboot", () => faults().request({ ...at("reboot"), kind: "cut" }), "outcome_unknown"],
  ] as const)("%s: healed", async (_, action, arm, code) => {
    // What there is to do: the opposite of what stands.
    await power(action === "start" ? "stop" : "start");
    arm();
    const handle = await bed.fleet.power({ sandboxId: box.sandboxId, action });
    expect(await firstFailure(handle)).toBe(code);
    const state = action === "start" || action === "reboot" ? "running" : "stopped";
    expect(await handle.result({ timeoutMs: 60_000 })).toEqual({ state, changed: true });
    expect(containerOf(bed, box.vmid)?.status).toBe(state);
  });

  test("without end, or out of time: failed, and the record says what stands", async () => {
    await power("stop");
    bed.pve.faults.task({ type: "vzstart", text: "startup for container '1' failed", times: 2 });
    const tried = await bed.fleet.power({ sandboxId: box.sandboxId, action: "start" });
    await useUpAttempts(bed, tried, 6);
    await failure(tried.result({ timeoutMs: 60_000 }), "start_failed");
    bed.pve.faults.task({ type: "vzstart", text: "startup for container '1' failed" });
    const late = await bed.fleet.power({ sandboxId: box.sandboxId, action: "start" });
    await useUpTime(bed, late, 900_000);
    await failure(late.result({ timeoutMs: 60_000 }), "timeout");
    expect(containerOf(bed, box.vmid)?.status).toBe(await stateOf(box.sandboxId));
  });
});

test("without SSH, pause and resume say what they need; where it is allowed they stop and start", async () => {
  await power("start");
  const refused = await failure(power("pause"), "unsupported");
  expect(refused.message).toContain("FLEET_SSH_KEY");
  expect(await stateOf(box.sandboxId)).toBe("running");
  expect(await power("resume")).toEqual({ state: "running", changed: false });
  expect(await power("pause", { allowStop: true })).toEqual({ state: "stopped", changed: true });
  expect(await power("pause", { allowStop: true })).toEqual({ state: "stopped", changed: false });
  await failure(power("resume"), "not_running");
  expect(await power("resume", { allowStop: true })).toEqual({ state: "running", changed: true });
});
