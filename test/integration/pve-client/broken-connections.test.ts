import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { createPveApi } from "../../../workers/pve/api.ts";
import { closedPort, startRelay } from "./relay.ts";
import { call, failure, node, type StandIn, startStandIn, vmid } from "./stand-in.ts";

let standIn: StandIn;
beforeEach(async () => {
  standIn = await startStandIn();
});
afterEach(() => standIn[Symbol.asyncDispose]());

const template = () => standIn.api.lxc(node("pve1"), vmid(9001));
const clones = () => standIn.seen().filter(({ path }) => path.endsWith("/clone"));

describe("a read", () => {
  it("is sent again once when its connection breaks", async () => {
    standIn.pve.faults.request({ kind: "cut", path: "/version" });
    const guard: number[] = [];
    expect(await standIn.api.version({ ...call(), guard: () => guard.push(1) })).toMatchObject({ version: "8.4.1" });
    expect(standIn.seen()).toHaveLength(2);
    expect(guard).toHaveLength(2);
  });

  it("is not sent a third time", async () => {
    standIn.pve.faults.request({ kind: "cut", path: "/version", times: 3 });
    expect(await failure(standIn.api.version(call()))).toMatchObject({ code: "node_unreachable", policy: "transport" });
    expect(standIn.seen()).toHaveLength(2);
  });

  it("survives a kept connection that PVE closes at its reuse", async () => {
    await using relay = await startRelay(standIn.pve.url);
    const api = createPveApi(standIn.client({ hosts: [relay.url], connectionsPerNode: 1 }));
    await api.version(call());
    await api.version(call());
    expect(relay.connections).toBe(1);
    relay.cutAtReuse();
    await api.version(call());
    expect(relay.connections).toBe(2);
    expect(standIn.reports.map(({ status }) => status)).toEqual([200, 200, 0, 200]);
  });

  it("leaves no idle connection for PVE to close: five seconds later it would, at any reuse", async () => {
    await using relay = await startRelay(standIn.pve.url);
    const api = createPveApi(standIn.client({ hosts: [relay.url] }));
    await api.version(call());
    expect(await relay.firstToClose()).toBe("client");
  });

  it("does not wait for ever", async () => {
    const hang = standIn.pve.faults.request({ kind: "hang", path: "/version" });
    const error = await failure(standIn.api.version({ ...call(), deadlineMs: 150 }));
    expect(error).toMatchObject({ code: "node_unreachable" });
    expect(String(error)).toContain("no answer within 150 ms");
    hang.release();
  });
});

describe("a change", () => {
  it.each(["cut", 596] as const)("whose reply is lost (%s) has an unknown outcome and is not repeated", async (as) => {
    standIn.pve.faults.request({ kind: "lose-reply", as, path: "/clone$" });
    const error = await failure(template().clone({ newid: vmid(20_001) }, call()));
    expect(error).toMatchObject({ code: "outcome_unknown", policy: "look_first", facts: { source: 9001 } });
    expect(clones()).toHaveLength(1);
    expect(standIn.pve.containers().some((each) => each.vmid === 20_001)).toBe(true);
  });

  it("on a kept connection that PVE closes at its reuse has an unknown outcome and is not repeated", async () => {
    await using relay = await startRelay(standIn.pve.url);
    const api = createPveApi(standIn.client({ hosts: [relay.url], connectionsPerNode: 1 }));
    await api.lxc(node("pve1"), vmid(9001)).config(call());
    relay.cutAtReuse();
    const error = await failure(api.lxc(node("pve1"), vmid(9001)).clone({ newid: vmid(20_001) }, call()));
    expect(error).toMatchObject({ code: "outcome_unknown" });
    expect(clones()).toHaveLength(0);
  });

  it("that gets no answer in time has an unknown outcome", async () => {
    const hang = standIn.pve.faults.request({ kind: "hang", path: "/clone$" });
    const error = await failure(template().clone({ newid: vmid(20_001) }, { ...call(), deadlineMs: 150 }));
    expect(error).toMatchObject({ code: "outcome_unknown" });
    hang.release();
  });

  it("that never got a connection was certainly not made", async () => {
    const port = await closedPort();
    const api = createPveApi(standIn.client({ hosts: [`https://127.0.0.1:${port}`] }));
    const error = await failure(api.lxc(node("pve1"), vmid(9001)).clone({ newid: vmid(20_001) }, call()));
    expect(error).toMatchObject({ code: "node_unreachable" });
    expect(String(error)).toContain("ECONNREFUSED");
  });

  it("that waited in vain for a free connection was certainly not made", async () => {
    const hang = standIn.pve.faults.request({ kind: "hang", path: "/status/current$", times: 4 });
    const abort = new AbortController();
    const busy = Array.from({ length: 4 }, () => template().status({ signal: abort.signal }));
    const change = template().clone({ newid: vmid(20_001) }, { ...call(), deadlineMs: 300 });
    expect(await failure(change)).toMatchObject({ code: "node_unreachable" });
    abort.abort(new Error("enough"));
    for (const each of busy) await expect(each).rejects.toThrow("enough");
    hang.release();
    await standIn.api.version(call());
    expect(clones()).toHaveLength(0);
  });
});

describe("a node that hangs", () => {
  it("does not hold up another one, not even with all its connections taken", async () => {
    const hang = standIn.pve.faults.request({ kind: "hang", path: "/nodes/pve1/", times: 9 });
    const abort = new AbortController();
    const stuck = Array.from({ length: 9 }, () => template().status({ signal: abort.signal }));
    expect(await standIn.api.list(node("pve2"), call())).toHaveLength(1);
    expect(standIn.seen()).toHaveLength(1);
    abort.abort(new Error("enough"));
    expect((await Promise.allSettled(stuck)).every(({ status }) => status === "rejected")).toBe(true);
    hang.release();
  });

  it.each([
    ["unreachable", "node_unreachable", "outcome_unknown"],
    ["refused", "node_unreachable", "outcome_unknown"],
    ["hung", "node_unreachable", "outcome_unknown"],
  ] as const)("or is %s: a read is %s, a change %s", async (state, read, change) => {
    standIn.pve.faults.node("pve2", state);
    const lxc = standIn.api.lxc(node("pve2"), vmid(9002));
    expect(await failure(standIn.api.list(node("pve2"), call()))).toMatchObject({
      code: read,
      facts: { node: "pve2" },
    });
    expect(await failure(lxc.start(call()))).toMatchObject({ code: change, facts: { node: "pve2", vmid: 9002 } });
    standIn.pve.faults.clear();
  });
});

describe("an answer that PVE does not give", () => {
  it.each(["html", "empty"] as const)("(%s) leaves a change's outcome unknown", async (kind) => {
    standIn.pve.faults.request({ kind, times: 2 });
    expect(await failure(standIn.api.version(call()))).toMatchObject({ code: "pve_bad_reply" });
    expect(await failure(template().start(call()))).toMatchObject({ code: "outcome_unknown" });
  });

  it("of another shape is told by its fields", async () => {
    standIn.pve.faults.request({ kind: "refuse", status: 200, text: "OK", path: "/version" });
    const error = await failure(standIn.api.version(call()));
    expect(error).toMatchObject({ code: "pve_bad_reply" });
  });
});

describe("a run that may not act any more", () => {
  it("sends nothing, and its own error comes through", async () => {
    const lost = new FleetError("lock_lost", "another run has taken over");
    const guard = () => {
      throw lost;
    };
    expect(await failure(template().clone({ newid: vmid(20_001) }, { ...call(), guard }))).toBe(lost);
    expect(await failure(standIn.api.version({ ...call(), guard }))).toBe(lost);
    await standIn.api.version(call());
    expect(standIn.seen()).toHaveLength(1);
  });

  it("is asked when the request goes out, not when it was queued", async () => {
    const hang = standIn.pve.faults.request({ kind: "hang", path: "/nodes/pve1/lxc$", times: 4 });
    const busy = Array.from({ length: 4 }, () => standIn.api.list(node("pve1"), call()));
    let allowed = true;
    const guard = () => {
      if (!allowed) throw new FleetError("lock_lost", "too late");
    };
    const queued = failure(template().start({ ...call(), guard }));
    // Until all connections are taken, nothing says that the change is in the queue.
    await standIn.api.version(call());
    allowed = false;
    hang.release();
    await Promise.all(busy);
    expect(await queued).toMatchObject({ code: "lock_lost" });
    expect(standIn.seen().some(({ method }) => method === "POST")).toBe(false);
  });

  it("throws its signal's reason, also while it waits for an answer", async () => {
    const reason = new FleetError("canceled", "by the caller");
    expect(await failure(standIn.api.version({ signal: AbortSignal.abort(reason) }))).toBe(reason);
    // Even a change that is on its way: whoever aborts knows that its outcome is open.
    const hang = standIn.pve.faults.request({ kind: "hang", path: "/status/start$" });
    const abort = new AbortController();
    const guard = () => setImmediate(() => abort.abort(reason));
    const waiting = failure(template().start({ signal: abort.signal, guard }));
    expect(await waiting).toBe(reason);
    hang.release();
  });

  it("is refused by a closed client", async () => {
    await standIn.http.close();
    expect(await failure(standIn.api.version(call()))).toMatchObject({ code: "shutting_down" });
  });
});
