import { afterEach, beforeEach, expect, it } from "vitest";
import { createPveApi } from "../../../workers/pve/api.ts";
import { closedPort, startRelay } from "./relay.ts";
import { call, failure, node, type StandIn, startStandIn, vmid } from "./stand-in.ts";

let standIn: StandIn;
beforeEach(async () => {
  standIn = await startStandIn();
});
afterEach(() => standIn[Symbol.asyncDispose]());

const statuses = () => standIn.reports.splice(0).map(({ status }) => status);

it("goes on with the next host when one is down, and stays there", async () => {
  const down = `https://127.0.0.1:${await closedPort()}`;
  const api = createPveApi(standIn.client({ hosts: [down, standIn.pve.url] }));
  await api.version(call());
  expect(statuses()).toEqual([0, 200]);
  await api.version(call());
  expect(statuses()).toEqual([200]);
});

it("makes a change through the next host when the first one never saw it", async () => {
  const down = `https://127.0.0.1:${await closedPort()}`;
  const api = createPveApi(standIn.client({ hosts: [down, standIn.pve.url] }));
  await api.lxc(node("pve1"), vmid(9001)).clone({ newid: vmid(20_001) }, call());
  expect(statuses()).toEqual([0, 200]);
});

it("does not make a change through the next host when the first one may have seen it", async () => {
  await using relay = await startRelay(standIn.pve.url);
  const api = createPveApi(standIn.client({ hosts: [relay.url, standIn.pve.url] }));
  standIn.pve.faults.request({ kind: "lose-reply", as: "cut", path: "/clone$" });
  const error = await failure(api.lxc(node("pve1"), vmid(9001)).clone({ newid: vmid(20_001) }, call()));
  expect(error).toMatchObject({ code: "outcome_unknown" });
  expect(statuses()).toEqual([0]);
});

it("reads through the next host when the first one does not reach the node", async () => {
  await using relay = await startRelay(standIn.pve.url);
  const api = createPveApi(standIn.client({ hosts: [relay.url, standIn.pve.url] }));
  standIn.pve.faults.request({ kind: "refuse", status: 595, text: "No route to host", path: "/nodes/pve2/lxc" });
  expect(await api.list(node("pve2"), call())).toHaveLength(1);
  expect(statuses()).toEqual([595, 200]);
});

it("says of each host what is wrong with it", async () => {
  const ports = [await closedPort(), await closedPort()];
  const api = createPveApi(standIn.client({ hosts: ports.map((port) => `https://127.0.0.1:${port}`) }));
  const error = await failure(api.version(call()));
  expect(error).toMatchObject({ code: "node_unreachable" });
  for (const port of ports) expect(String(error)).toContain(`127.0.0.1:${port}: ECONNREFUSED`);
});

it("takes a wrong certificate for final only when no host has a right one", async () => {
  const tls = { verify: true };
  const down = `https://127.0.0.1:${await closedPort()}`;
  const some = createPveApi(standIn.client({ hosts: [standIn.pve.url, down], tls }));
  expect(await failure(some.version(call()))).toMatchObject({ code: "node_unreachable" });
  const all = createPveApi(standIn.client({ hosts: [standIn.pve.url], tls }));
  expect(await failure(all.version(call()))).toMatchObject({ code: "tls_untrusted" });
});
