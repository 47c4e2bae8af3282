/** Containers' own firewalls: closed before the first start, by rules that are there once. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { examineFirewall } from "../../../workers/doctor/pve.ts";
import { Client } from "../../pve/client.ts";
import { type Bed, containerOf, failure, provisionOne, startBed, within } from "./harness.ts";

const RULES = "/firewall/rules";
const OPTIONS = "/firewall/options";

/** More than PVE takes in one rule. */
const DENIED = Array.from({ length: 40 }, (_, at) => `10.100.${at}.0/24`);

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    rights: "least",
    pve: { nodes: 1 },
    env: { PVE_FIREWALL_ALLOW: "10.9.0.0/24,10.8.0.5/32,fd00:9::/64", PVE_FIREWALL_DENY: DENIED.join(",") },
  });
});
afterAll(() => bed.close());
afterEach(() => bed.pve.faults.clear());

const EXPECTED = [
  ...[DENIED.slice(34), DENIED.slice(0, 34)].map((networks) => ({
    type: "out",
    action: "DROP",
    dest: networks.join(","),
    enable: "1",
    comment: "sandbox-fleet",
  })),
  { type: "in", action: "ACCEPT", proto: "tcp", source: "fd00:9::/64", enable: "1", comment: "sandbox-fleet" },
  {
    type: "in",
    action: "ACCEPT",
    proto: "tcp",
    source: "10.9.0.0/24,10.8.0.5/32",
    enable: "1",
    comment: "sandbox-fleet",
  },
];

test("nobody gets in but who is named, before the container starts", async () => {
  const { vmid } = await provisionOne(bed.fleet);
  const container = containerOf(bed, vmid);
  expect(container?.firewall.rules).toEqual(EXPECTED);
  expect(container?.firewall.options).toMatchObject({ enable: "1", policy_in: "DROP", macfilter: "1", ipfilter: "0" });
  expect(container?.config["net0"]).toContain("firewall=1");
  const asked = bed.pve.log().filter(({ path, method }) => method !== "GET" && path.includes(`/lxc/${vmid}/`));
  expect(asked.map(({ path }) => path.split(`/${vmid}`)[1])).toEqual([
    "/config",
    RULES,
    RULES,
    RULES,
    RULES,
    OPTIONS,
    "/status/start",
  ]);
});

test("a container with a fixed address can take no other", async () => {
  const handle = await bed.fleet.provision({
    template: "cmux-base",
    waitFor: "address",
    network: { ip: "127.200.0.9/8", gateway: "127.0.0.1" },
  });
  const { vmid } = await handle.result({ timeoutMs: 60_000 });
  expect(containerOf(bed, vmid)?.firewall.options).toMatchObject({ ipfilter: "1" });
});

test("a step that is tried again doubles no rule", async () => {
  bed.pve.faults.request({ kind: "cut", method: "PUT", path: "/firewall/options$" });
  const { vmid } = await provisionOne(bed.fleet);
  expect(containerOf(bed, vmid)?.firewall.rules).toEqual(EXPECTED);
});

test("a token that may not is told what it lacks", async () => {
  const before = bed.pve.containers().length;
  const text = "Permission check failed (/vms/20000, VM.Config.Network)";
  bed.pve.faults.request({ kind: "refuse", method: "POST", path: "/firewall/rules$", status: 403, text, times: 100 });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const error = await failure(handle.result({ timeoutMs: 60_000 }), "forbidden");
  expect(error.message).toContain("VM.Config.Network");
  expect(bed.pve.containers()).toHaveLength(before);
});

test("where the datacenter's firewall is off, the doctor says that all this closes nothing", async () => {
  const pve = bed.workers?.context.pve;
  if (pve === undefined) throw new Error("the bed has no workers");
  const said = async () => (await examineFirewall(pve, { closes: true, signal: within() }))[0];
  expect(await said()).toMatchObject({ level: "problem", text: expect.stringMatching(/^off for the datacenter/) });
  await using client = new Client(bed.pve);
  await client.data("PUT", "/cluster/firewall/options", { enable: 1 });
  expect(await said()).toMatchObject({ level: "ok" });
});
