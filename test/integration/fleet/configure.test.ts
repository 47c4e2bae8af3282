/** Changing the resources of a live sandbox. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { LogEntry } from "../../pve/index.ts";
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
  within,
} from "./harness.ts";

let bed: Bed;
let box: Awaited<ReturnType<typeof provisionOne>>;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 } });
  box = await provisionOne(bed.fleet);
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const configure = (change: object) => run(bed.fleet, "configure", { sandboxId: box.sandboxId, ...change });
const configOf = (vmid: number) => containerOf(bed, vmid)?.config ?? {};

test("changes what is given and leaves the rest", async () => {
  const before = configOf(box.vmid);
  const change = { cores: 3, cpulimit: 1.5, cpuunits: 300, memoryMib: 1_024, swapMib: 0, diskGib: 7, onboot: true };
  const { applied } = await configure(change);
  expect(applied).toMatchObject(change);
  const after = configOf(box.vmid);
  expect(after).toMatchObject({ cores: "3", cpulimit: "1.5", cpuunits: "300", memory: "1024", swap: "0", onboot: "1" });
  expect(after["rootfs"]).toContain("size=7G");
  for (const kept of ["net0", "hostname", "description"]) expect(after[kept]).toBe(before[kept]);
  expect(containerOf(bed, box.vmid)?.status).toBe("running");
});

test("asked for what it has, it sends no change", async () => {
  const { cores } = (await configure({ cores: 2 })).applied;
  const puts = () =>
    bed.pve.log().filter(({ method, path }) => method === "PUT" && path.endsWith(`${box.vmid}/config`));
  const sent = puts().length;
  await configure({ cores });
  expect(puts()).toHaveLength(sent);
});

describe("refused", () => {
  test("a disk that would shrink", async () => {
    const error = await failure(configure({ diskGib: 1 }), "invalid_input");
    expect(error.facts).toMatchObject({ fields: ["diskGib"] });
  });

  test("what is unknown or gone", async () => {
    await failure(bed.fleet.configure({ sandboxId: "sbx_0000000000000000", cores: 1 }), "sandbox_not_found");
    const { sandboxId } = await provisionOne(bed.fleet);
    await run(bed.fleet, "destroy", { sandboxId });
    await failure(bed.fleet.configure({ sandboxId, cores: 1 }), "sandbox_gone");
  });

  test("a container that vanished behind our back", async () => {
    const { sandboxId, vmid } = await provisionOne(bed.fleet);
    bed.pve.faults.vanish(vmid);
    await failure(run(bed.fleet, "configure", { sandboxId, cores: 1 }), "sandbox_gone");
    expect(await run(bed.fleet, "destroy", { sandboxId })).toEqual({ destroyed: true, existed: false });
  });

  test("a value that PVE refuses", async () => {
    bed.pve.faults.request({
      kind: "refuse",
      status: 400,
      text: "Parameter verification failed.",
      errors: { cores: "value must have a maximum value of 4" },
      method: "PUT",
    });
    const error = await failure(configure({ cores: 5 }), "invalid_input");
    expect(error.text).toContain("maximum value of 4");
  });
});

const PUT = { method: "PUT", path: "/config$" };

describe("bad weather", () => {
  test.each([
    ["executed, reply lost", () => bed.pve.faults.request({ ...PUT, kind: "lose-reply", as: 596 }), "outcome_unknown"],
    ["cut", () => bed.pve.faults.request({ ...PUT, kind: "cut" }), "outcome_unknown"],
    ["HTML", () => bed.pve.faults.request({ ...PUT, kind: "html" }), "outcome_unknown"],
    [
      "a locked file",
      () =>
        bed.pve.faults.request({
          ...PUT,
          kind: "refuse",
          status: 500,
          text: "can't lock file '/run/lock/lxc/pve-config-20000.lock' - got timeout",
        }),
      "container_locked",
    ],
    [
      "no quorum",
      () => bed.pve.faults.request({ ...PUT, kind: "refuse", status: 500, text: "cluster not ready - no quorum?" }),
      "no_quorum",
    ],
  ] as const)("%s: healed", async (_, arm, code) => {
    const cores = Number(configOf(box.vmid)["cores"]) === 4 ? 3 : 4;
    arm();
    const handle = await bed.fleet.configure({ sandboxId: box.sandboxId, cores });
    expect(await firstFailure(handle)).toBe(code);
    expect((await handle.result({ timeoutMs: 60_000 })).applied.cores).toBe(cores);
    expect(configOf(box.vmid)["cores"]).toBe(String(cores));
  });

  test("a change by somebody else in between is not overwritten blindly", async () => {
    bed.pve.faults.request({ ...PUT, kind: "delay", ms: 150 });
    const before = bed.pve.log().length;
    const isLook = ({ method, path }: LogEntry) => method === "GET" && path.endsWith(`${box.vmid}/config`);
    const handle = await bed.fleet.configure({ sandboxId: box.sandboxId, memoryMib: 640 });
    await bed.pve.waitForRequest((entry) => isLook(entry) && bed.pve.log().indexOf(entry) >= before, within());
    bed.pve.faults.edit(box.vmid, { tags: "by-hand" });
    expect(await firstFailure(handle)).toBe("config_changed");
    await handle.result({ timeoutMs: 60_000 });
    expect(configOf(box.vmid)).toMatchObject({ memory: "640", tags: "by-hand" });
  });

  test("a resize that fails once, without end, or out of time", async () => {
    const fail = (times: number) => bed.pve.faults.task({ type: "resize", text: "lvresize said no", times });
    fail(1);
    const healed = await bed.fleet.configure({ sandboxId: box.sandboxId, diskGib: 8 });
    expect(await firstFailure(healed)).toBe("task_failed");
    await healed.result({ timeoutMs: 60_000 });
    expect(configOf(box.vmid)["rootfs"]).toContain("size=8G");
    fail(2);
    const tried = await bed.fleet.configure({ sandboxId: box.sandboxId, diskGib: 9 });
    await useUpAttempts(bed, tried, 6);
    await failure(tried.result({ timeoutMs: 60_000 }), "task_failed");
    fail(1);
    const late = await bed.fleet.configure({ sandboxId: box.sandboxId, diskGib: 9 });
    await useUpTime(bed, late, 300_000);
    await failure(late.result({ timeoutMs: 60_000 }), "timeout");
    expect(configOf(box.vmid)["rootfs"]).toContain("size=8G");
  });
});
