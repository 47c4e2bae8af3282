import { describe, expect, it } from "vitest";
import { Client } from "../../pve/client.ts";
import { startPve } from "../../pve/index.ts";

const FAST = { timeScale: 0.05, apiScale: 0, authDelay: 50, unreachableDelay: 50, hungTimeout: 150 };
const clone = ["POST", "/nodes/pve1/lxc/9001/clone"] as const;

async function start(version: "8.4" | "9.2" = "8.4") {
  const pve = await startPve({ version, timings: FAST });
  return { pve, client: new Client(pve) };
}

describe("faults", () => {
  it("executes a request whose reply is lost, and does not execute one that is cut", async () => {
    const { pve, client } = await start();
    await using _pve = pve;
    await using _client = client;
    pve.faults.request({ kind: "lose-reply", as: 596, path: "/clone$" });
    expect(await client.ask(...clone, { newid: 200 })).toMatchObject({ status: 596, body: "" });
    pve.faults.request({ kind: "lose-reply", as: "cut", path: "/clone$" });
    await client.quiet();
    await expect(client.ask(...clone, { newid: 201 })).rejects.toThrow();
    pve.faults.request({ kind: "cut", path: "/clone$" });
    await client.quiet();
    await expect(client.ask(...clone, { newid: 202 })).rejects.toThrow();
    expect(pve.containers().map(({ vmid }) => vmid)).toEqual([9001, 9002, 9003, 200, 201]);
    expect(
      pve
        .log()
        .filter(({ fault }) => fault !== undefined)
        .map(({ fault }) => fault),
    ).toEqual(["lose-reply", "lose-reply", "cut"]);
  });

  it("refuses, answers rubbish, delays and hangs on request", async () => {
    const { pve, client } = await start();
    await using _pve = pve;
    await using _client = client;
    const refusal = pve.faults.request({
      kind: "refuse",
      status: 500,
      text: "no",
      method: "GET",
      path: "^/version$",
      times: 2,
    });
    expect(await client.ask("GET", "/version")).toMatchObject({
      status: 500,
      reason: "no",
      body: '{"data":null,"message":"no\\n"}',
    });
    expect(refusal.hits).toBe(1);
    refusal.release();
    pve.faults.request({ kind: "html" });
    expect((await client.ask("GET", "/version")).body).toContain("<html>");
    pve.faults.request({ kind: "empty", status: 502 });
    expect(await client.ask("GET", "/version")).toMatchObject({ status: 502, body: "" });
    pve.faults.request({ kind: "delay", ms: 80 });
    expect((await client.ask("GET", "/version")).ms).toBeGreaterThan(75);
    const hang = pve.faults.request({ kind: "hang" });
    const hanging = client.ask("GET", "/version");
    await Promise.race([hanging, client.ask("GET", "/nodes")]);
    hang.release();
    expect((await hanging).status).toBe(200);
  });

  it("fails a task with a text, with or without its locks", async () => {
    const { pve, client } = await start();
    await using _pve = pve;
    await using _client = client;
    pve.faults.task({ type: "vzclone", text: "disk is on fire" });
    await client.task(...clone, { newid: 200 });
    expect(pve.tasks().at(-1)?.exitstatus).toBe("clone failed: disk is on fire");
    pve.faults.task({ type: "vzclone", text: "worker died", leaveLocks: true });
    await client.task(...clone, { newid: 200 });
    const locks = pve.containers().flatMap(({ vmid, lock }) => (lock === undefined ? [] : [[vmid, lock]]));
    expect(locks).toEqual([
      [9001, "disk"],
      [200, "create"],
    ]);
  });

  it("takes nodes and the quorum away; a write that hung runs when the daemon wakes up", async () => {
    const { pve, client } = await start();
    await using _pve = pve;
    await using _client = client;
    pve.faults.node("pve2", "unreachable");
    expect(await client.ask("GET", "/nodes/pve2/lxc")).toMatchObject({
      status: 595,
      reason: "No route to host",
      body: "",
    });
    pve.faults.node("pve2", "refused");
    expect(await client.ask("GET", "/nodes/pve2/lxc")).toMatchObject({ status: 595, reason: "Connection refused" });
    pve.faults.node("pve2", "hung");
    expect(await client.ask("POST", "/nodes/pve2/lxc/9002/clone", { newid: 200 })).toMatchObject({
      status: 596,
      body: "",
    });
    expect((await client.ask("GET", "/version")).status).toBe(200);
    expect(pve.containers().some(({ vmid }) => vmid === 200)).toBe(false);
    pve.faults.node("pve2", "online");
    await pve.waitForTask(({ target }) => target === 200, AbortSignal.timeout(60_000));
    pve.faults.quorum(false);
    expect((await client.ask(...clone, { newid: 201 })).reason).toBe("cluster not ready - no quorum?");
    pve.faults.clear();
    expect((await client.ask(...clone, { newid: 201 })).status).toBe(200);
  });

  it("starts no worker and leaves both locks", async () => {
    const { pve, client } = await start("9.2");
    await using _pve = pve;
    await using _client = client;
    pve.faults.request({ kind: "no-worker", path: "/clone$" });
    expect((await client.ask(...clone, { newid: 200 })).reason).toBe("got no worker upid - start worker failed");
    expect(pve.containers().flatMap(({ vmid, lock }) => (lock === undefined ? [] : [[vmid, lock]]))).toEqual([
      [9001, "disk"],
      [200, "create"],
    ]);
    expect(pve.tasks()).toEqual([]);
  });

  it("is driven over the control API too", async () => {
    const { pve, client } = await start();
    await using _pve = pve;
    await using _client = client;
    const post = async (path: string, body: unknown) => {
      const response = await fetch(`${pve.controlUrl}${path}`, { method: "POST", body: JSON.stringify(body) });
      return { status: response.status, body: (await response.json()) as Record<string, unknown> };
    };
    const { id } = (await post("/faults/request", { kind: "refuse", status: 503, text: "later", times: 5 })).body;
    expect((await client.ask("GET", "/version")).status).toBe(503);
    expect((await post("/faults/release", { id })).body).toEqual({ released: true });
    expect((await client.ask("GET", "/version")).status).toBe(200);
    await post("/occupy", { vmid: 150 });
    expect((await client.ask(...clone, { newid: 150 })).reason).toBe("CT 150 already exists on node 'pve1'");
    await post("/edit", { vmid: 150, change: { description: "mine", tags: null } });
    await post("/lock", { vmid: 150, lock: "backup" });
    expect((await client.ask("DELETE", "/nodes/pve1/lxc/150")).reason).toBe("CT is locked (backup)");
    await post("/unlock", { vmid: 150 });
    await post("/move", { vmid: 150, node: "pve3" });
    expect((await client.ask("DELETE", "/nodes/pve1/lxc/150")).reason).toContain("does not exist");
    await post("/vanish", { vmid: 150 });
    expect(pve.containers().some(({ vmid }) => vmid === 150)).toBe(false);
    expect((await post("/node", { name: "pve1", state: "sleepy" })).status).toBe(400);
    expect((await post("/freeze", { vmid: 4711 })).status).toBe(409);
    const info = (await (await fetch(`${pve.controlUrl}/info`)).json()) as { token: string };
    expect(info.token).toBe(pve.token);
  });
});
