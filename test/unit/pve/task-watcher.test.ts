import { beforeEach, describe, expect, it } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { createTaskWatcher, type TaskWatcher } from "../../../workers/pve/task-watcher.ts";
import type { Upid } from "../../../workers/pve/upid.ts";
import { quantile, SimulatedNode, seededRandom } from "./simulated-node.ts";

let node: SimulatedNode;
let watcher: TaskWatcher;
const never = new AbortController().signal;

beforeEach(() => {
  node = new SimulatedNode();
  watcher = createTaskWatcher(node, { clock: node.clock });
});

/** Waits for the end and says how late that was noticed. */
async function lateness(upid: Upid, kind?: string): Promise<number> {
  await watcher.wait(upid, { signal: never, ...(kind === undefined ? {} : { kind }) });
  return node.clock.now() - node.endOf(upid);
}

const spread = (ms: number, random: () => number) => ms * (0.95 + random() / 10);

describe("a task alone", () => {
  it("costs few requests and is noticed soon, clone and start one after the other", async () => {
    const random = seededRandom(7);
    const late: number[] = [];
    const costs: number[] = [];
    for (let round = 0; round < 220; round++) {
      const before = node.requests.length;
      const clone = await node.clock.until(lateness(node.start(spread(300, random)), "linked_clone"));
      const start = await node.clock.until(lateness(node.start(spread(1500, random)), "start"));
      if (round < 20) continue;
      late.push(clone, start);
      costs.push(node.requests.length - before);
    }
    expect(quantile(late, 0.5)).toBeLessThanOrEqual(10);
    expect(quantile(late, 0.95)).toBeLessThanOrEqual(30);
    // A provision makes five requests besides, and may make 14.
    expect(costs.reduce((sum, each) => sum + each) / costs.length).toBeLessThanOrEqual(7);
    expect(node.requests.every(({ what }) => what === "status")).toBe(true);
  });

  it("is noticed within 100 ms before anything is learned", async () => {
    for (const ms of [10, 120, 1_400, 6_000]) {
      expect(await node.clock.until(lateness(node.start(ms), `kind of ${ms} ms`))).toBeLessThanOrEqual(105);
    }
  });

  it("is noticed within 100 ms again soon after its kind has become faster, or slower", async () => {
    const random = seededRandom(3);
    for (let i = 0; i < 20; i++) await node.clock.until(lateness(node.start(spread(1500, random)), "start"));
    const faster: number[] = [];
    for (let i = 0; i < 10; i++)
      faster.push(await node.clock.until(lateness(node.start(spread(300, random)), "start")));
    expect(Math.max(...faster.slice(3))).toBeLessThanOrEqual(105);
    const slower: number[] = [];
    for (let i = 0; i < 10; i++)
      slower.push(await node.clock.until(lateness(node.start(spread(4000, random)), "start")));
    expect(Math.max(...slower)).toBeLessThanOrEqual(105);
  });

  it("is asked for at once when it was found", async () => {
    const upid = node.start(0);
    await node.clock.until(lateness(upid));
    expect(node.requests).toEqual([{ at: 0, what: "status" }]);
  });

  it("is asked for once by all who wait for it", async () => {
    const upid = node.start(40);
    const both = Promise.all([lateness(upid, "x"), lateness(upid, "x")]);
    await node.clock.until(both);
    expect(node.requests).toHaveLength(1);
  });

  it("fails with the task's own error", async () => {
    const upid = node.start(10, { exitstatus: "startup for container '201' failed" });
    const error = await node.clock.until(lateness(upid, "start").catch((thrown: unknown) => thrown));
    expect(error).toMatchObject({ code: "start_failed", facts: { upid, node: "pve1", vmid: 201 } });
  });

  it("takes warnings for a success", async () => {
    const waiting = watcher.wait(node.start(10, { exitstatus: "WARNINGS: 2" }), { signal: never, kind: "start" });
    expect(await node.clock.until(waiting)).toEqual({ exitstatus: "WARNINGS: 2" });
  });
});

describe("a few tasks at once", () => {
  it.each([2, 4, 8])("cost fewer requests each than one alone and are noticed soon: %i", async (count) => {
    const random = seededRandom(5);
    const late: number[] = [];
    let provisions = 0;
    const provision = async (at: number) => {
      await node.clock.sleep(320 * at);
      for (let round = 0; round < 40; round++) {
        const clone = await lateness(node.start(spread(300, random)), "linked_clone");
        await node.clock.sleep(40 + 10 * random());
        const start = await lateness(node.start(spread(1500, random)), "start");
        provisions += 1;
        if (round >= 5) late.push(clone, start);
      }
    };
    await node.clock.until(Promise.all(Array.from({ length: count }, (_, at) => provision(at))));
    expect(quantile(late, 0.5)).toBeLessThanOrEqual(20);
    expect(quantile(late, 0.95)).toBeLessThanOrEqual(50);
    expect(node.requests.length / provisions).toBeLessThanOrEqual(count === 2 ? 6 : 5);
  });
});

describe("many tasks", () => {
  it("cost at most ten requests a second and are noticed within a tick", async () => {
    const random = seededRandom(11);
    const upids = Array.from({ length: 100 }, () => node.start(500 + random() * 15_000));
    const late = await node.clock.until(Promise.all(upids.map((upid) => lateness(upid, "start"))));
    // Until three are left, which are few.
    const manyUntil = upids.map((upid) => node.endOf(upid)).sort((a, b) => b - a)[3] ?? 0;
    const asked = node.requests.map(({ at }) => at).filter((at) => at < manyUntil);
    const perSecond = asked.map((from) => asked.filter((at) => at >= from && at < from + 1_000).length);
    expect(Math.max(...perSecond)).toBeLessThanOrEqual(10);
    const crowded = upids
      .map((upid, i) => ({ late: late[i] ?? 0, at: node.endOf(upid) }))
      .filter(({ at }) => at < manyUntil);
    expect(
      quantile(
        crowded.map((each) => each.late),
        0.95,
      ),
    ).toBeLessThanOrEqual(105);
    expect(node.requests.filter(({ what }) => what === "list").length).toBeGreaterThan(100);
  });

  it("are asked for by name when the list is wrong about them", async () => {
    const stuck = node.start(20_000, { listedForever: true });
    const others = Array.from({ length: 3 }, () => node.start(200_000));
    const late = node.clock.until(lateness(stuck, "start"));
    for (const upid of others) watcher.wait(upid, { signal: never, kind: "start" }).catch(() => {});
    // Four suspects, one of them asked for every 5 s.
    expect(await late).toBeLessThan(20_000);
    await watcher.close();
  });

  it("cost no more than that when some of them were few before", async () => {
    const first = Array.from({ length: 3 }, () => node.start(9_000));
    const ends = first.map((upid) => lateness(upid, "start"));
    await node.clock.until(node.clock.sleep(300));
    const later = Array.from({ length: 20 }, () => node.start(9_500));
    ends.push(...later.map((upid) => lateness(upid, "start")));
    await node.clock.until(Promise.all(ends));
    const byName = node.requests.filter(({ at, what }) => what === "status" && at > 400);
    expect(byName).toEqual([]);
  });

  it("are found among more of others than the list has room for", async () => {
    const mine = Array.from({ length: 10 }, () => node.start(3_000));
    for (let i = 0; i < 300; i++) node.start(60_000);
    const late = await node.clock.until(Promise.all(mine.map((upid) => lateness(upid, "start"))));
    expect(Math.max(...late)).toBeLessThanOrEqual(110);
    expect(node.requests.filter(({ what }) => what === "status")).toEqual([]);
  });

  it("that PVE has forgotten are lost", async () => {
    const forgotten = new SimulatedNode();
    for (let i = 0; i < 50; i++) forgotten.start(0);
    const upid = forgotten.start(1);
    const others = Array.from({ length: 9 }, () => node.start(1_000));
    const lost = watcher.wait(upid, { signal: never, kind: "start" }).catch((thrown: unknown) => thrown);
    for (const each of others) watcher.wait(each, { signal: never, kind: "start" }).catch(() => {});
    expect(await node.clock.until(lost)).toMatchObject({ code: "task_lost", facts: { upid } });
    await watcher.close();
  });

  it("teach nothing about one alone", async () => {
    const upids = Array.from({ length: 30 }, () => node.start(8_000));
    await node.clock.until(Promise.all(upids.map((upid) => lateness(upid, "start"))));
    expect(await node.clock.until(lateness(node.start(1_500), "start"))).toBeLessThanOrEqual(105);
  });
});

describe("a node that does not answer", () => {
  const unreachable = new FleetError("node_unreachable", "No route to host");

  it("does not end the wait while there is hope", async () => {
    const upid = node.start(5_000);
    node.failure = unreachable;
    node.clock.after(20_000, () => {
      node.failure = undefined;
    });
    expect(await node.clock.until(lateness(upid, "start"))).toBeLessThan(21_000);
    expect(node.requests.length).toBeLessThan(20);
  });

  it.each([1, 10])("is given up after a while, for %i tasks", async (count) => {
    const upids = Array.from({ length: count }, () => node.start(1_000));
    node.failure = unreachable;
    const ends = upids.map((upid) => lateness(upid, "start").catch((thrown: unknown) => thrown));
    const errors = await node.clock.until(Promise.all(ends));
    expect(node.clock.now()).toBeGreaterThanOrEqual(60_000);
    expect(node.clock.now()).toBeLessThan(66_000);
    errors.forEach((error, i) => {
      expect(error).toMatchObject({ code: "node_unreachable", facts: { upid: upids[i] } });
    });
  });

  it.each(["task_lost", "forbidden"] as const)("is another thing than %s, which ends the wait", async (code) => {
    node.failure = new FleetError(code, "PVE's text");
    const error = await node.clock.until(lateness(node.start(1_000), "start").catch((thrown: unknown) => thrown));
    expect(error).toMatchObject({ code, text: "PVE's text" });
    expect(node.requests).toHaveLength(1);
  });
});

describe("a wait that is over", () => {
  it("throws the signal's reason and leaves no timer", async () => {
    const abort = new AbortController();
    const reason = new FleetError("canceled", "by its caller");
    const waiting = watcher.wait(node.start(60_000), { signal: abort.signal, kind: "start" });
    node.clock.after(1_000, () => abort.abort(reason));
    await expect(node.clock.until(waiting)).rejects.toBe(reason);
    // What is left is the answer to a request that nobody waits for any more.
    expect(node.clock.pending).toBeLessThanOrEqual(1);
    const asked = node.requests.length;
    await node.clock.until(node.clock.sleep(10_000));
    expect(node.requests).toHaveLength(asked);
    expect(node.clock.pending).toBe(0);
  });

  it("does not end another one for the same task", async () => {
    const abort = new AbortController();
    const upid = node.start(2_000);
    const mine = watcher.wait(upid, { signal: abort.signal, kind: "start" });
    const others = lateness(upid, "start");
    node.clock.after(500, () => abort.abort(new Error("mine")));
    await expect(node.clock.until(mine)).rejects.toThrow("mine");
    expect(await node.clock.until(others)).toBeLessThanOrEqual(105);
  });

  it("was ended by closing", async () => {
    const waiting = watcher.wait(node.start(60_000), { signal: never, kind: "start" });
    await watcher.close();
    await expect(waiting).rejects.toMatchObject({ code: "shutting_down" });
    await expect(watcher.wait(node.start(1), { signal: never })).rejects.toMatchObject({ code: "shutting_down" });
    expect(node.clock.pending).toBe(0);
  });

  it("never began with an aborted signal", async () => {
    const reason = new FleetError("lock_lost", "too late");
    await expect(watcher.wait(node.start(1), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(node.clock.pending).toBe(0);
  });
});
