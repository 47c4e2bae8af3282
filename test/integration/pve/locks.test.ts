import { describe, expect, it } from "vitest";
import { Client } from "../../pve/client.ts";
import { type PveOptions, startPve } from "../../pve/index.ts";

async function stubborn(options: PveOptions = {}) {
  const pve = await startPve({
    nodes: 1,
    templates: [{ vmid: 100, template: false, guest: { ignoresShutdown: true } }, { vmid: 9001 }],
    ...options,
    timings: { timeScale: 0.05, apiScale: 0, lockTimeout: 150, taskAbort: 100, ...options.timings },
  });
  return { pve, client: new Client(pve) };
}

const at = (action: string) => `/nodes/pve1/lxc/100/status/${action}`;

describe("locks", () => {
  it("holds the file lock during a shutdown: others wait, then give up", async () => {
    const { pve, client } = await stubborn();
    await using _pve = pve;
    await using _client = client;
    await client.task("POST", at("start"));
    await client.data("POST", at("shutdown"), { timeout: 900 });
    const text = "can't lock file '/run/lock/lxc/pve-config-100.lock' - got timeout";
    expect(await client.ask("PUT", "/nodes/pve1/lxc/100/config", { cores: 3 })).toMatchObject({
      status: 500,
      reason: text,
    });
    const stop = await client.task("POST", at("stop"));
    expect(pve.tasks().find(({ upid }) => upid === stop)?.exitstatus).toBe(text);
    const overrule = await client.task("POST", at("stop"), { "overrule-shutdown": 1 });
    expect(pve.tasks().find(({ upid }) => upid === overrule)?.exitstatus).toBe("OK");
    expect(pve.tasks().find(({ type }) => type === "vzshutdown")?.exitstatus).toBe("unexpected status");
  });

  it("cleans up a clone that is interrupted, and leaves the locks of one that is killed", async () => {
    const { pve, client } = await stubborn({ timings: { timeScale: 10 } });
    await using _pve = pve;
    await using _client = client;
    const clone = async (newid: number) => String(await client.data("POST", "/nodes/pve1/lxc/9001/clone", { newid }));
    const first = await clone(200);
    await client.data("DELETE", `/nodes/pve1/tasks/${first}`);
    expect(await client.data("GET", `/nodes/pve1/tasks/${first}/status`)).toMatchObject({
      exitstatus: "clone failed: interrupted by signal",
    });
    expect(pve.containers().map(({ vmid, lock }) => [vmid, lock])).toEqual([
      [100, undefined],
      [9001, undefined],
    ]);
    const second = await clone(201);
    pve.faults.killTask(second);
    await client.ended(second);
    expect(pve.containers().map(({ vmid, lock }) => [vmid, lock])).toEqual([
      [100, undefined],
      [9001, "disk"],
      [201, "create"],
    ]);
    expect((await client.ask("DELETE", "/nodes/pve1/lxc/201")).reason).toBe("CT is locked (create)");
    pve.faults.lock(9001, null);
    expect((await client.ask("POST", "/nodes/pve1/lxc/9001/clone", { newid: 202 })).status).toBe(200);
  });

  it("runs as many starts at full speed as the node can, and slows the rest down", async () => {
    const vmids = [101, 102, 103, 104, 105, 106];
    const { pve, client } = await stubborn({
      nodes: [{ name: "pve1", parallel: 2 }],
      templates: vmids.map((vmid) => ({ vmid, template: false })),
      timings: { start: 300, timeScale: 1, jitter: 0 },
    });
    await using _pve = pve;
    await using _client = client;
    await client.task("POST", "/nodes/pve1/lxc/101/status/start");
    await Promise.all(vmids.slice(1).map((vmid) => client.data("POST", `/nodes/pve1/lxc/${vmid}/status/start`)));
    await client.quiet();
    const took = pve.tasks().map(({ startedAt, endedAt = 0 }) => endedAt - startedAt);
    expect(took[0]).toBeGreaterThan(295);
    expect(took[0]).toBeLessThan(600);
    // 5 × 300 ms on 2 cores, and some overhead.
    expect(Math.max(...took)).toBeGreaterThan(740);
  });

  it("has three synchronous workers a node: a fourth call waits for one of them", async () => {
    const { pve, client } = await stubborn({ timings: { lockTimeout: 1_000 } });
    await using _pve = pve;
    await using _client = client;
    await client.task("POST", at("start"));
    const upid = String(await client.data("POST", at("shutdown"), { timeout: 900 }));
    const calls = [1, 2, 3, 4].map((cores) => client.ask("PUT", "/nodes/pve1/lxc/100/config", { cores }));
    const took = (await Promise.all(calls)).map(({ ms }) => ms).sort((a, b) => a - b);
    expect(took[2]).toBeLessThan(1_900);
    expect(took[3]).toBeGreaterThan(1_990);
    await client.ask("DELETE", `/nodes/pve1/tasks/${upid}`);
  });
});
