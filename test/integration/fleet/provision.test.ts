/** A provision that works: what its caller gets, and what stands in PVE afterwards. */
import { once } from "node:events";
import { get } from "node:http";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startDnsmasq } from "../../dnsmasq.ts";
import { type Bed, containerOf, provisionOne, run, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({
    pve: {
      nodes: 2,
      templates: [
        { name: "cmux-base", node: "pve1" },
        { name: "cmux-base", node: "pve2" },
        { name: "on-dir", node: "pve1", storage: "local", tags: "tagged;cmux" },
      ],
    },
  });
});
afterAll(() => bed.close());

test("returns ids, place, address, services and timings, and the container is what they say", async () => {
  const services = [{ name: "web" as const, port: 8_000 }];
  const handle = await bed.fleet.provision({ template: "cmux-base", services });
  const result = await handle.result({ timeoutMs: 60_000 });
  expect(result).toEqual({
    sandboxId: handle.sandboxId,
    operationId: handle.id,
    node: expect.stringMatching(/^pve[12]$/),
    vmid: expect.any(Number),
    hostname: `cmux-${result.vmid}`,
    address: expect.stringMatching(/^127\./),
    warm: false,
    services: [
      {
        name: "web",
        port: 8_000,
        url: expect.any(String),
        level: expect.stringMatching(/^lan_/),
        reason: expect.stringContaining("PVE_PUBLIC_DOMAIN is not set"),
        auth: "none",
        epoch: expect.any(String),
      },
    ],
    timings: expect.objectContaining({
      clone: expect.any(Number),
      start: expect.any(Number),
      ready: expect.any(Number),
    }),
  });
  const container = containerOf(bed, result.vmid);
  expect(container).toMatchObject({
    node: result.node,
    name: result.hostname,
    status: "running",
    template: false,
    address: result.address,
    config: { hostname: result.hostname, unprivileged: "1", net0: expect.stringContaining("firewall=1") },
  });
  expect(container?.lock).toBeUndefined();
  expect(container?.config["description"]).toContain(handle.sandboxId);
  expect(container?.config["description"]).toContain(handle.id);
  const record = await bed.fleet.sandboxes.get(handle.sandboxId);
  expect(record).toMatchObject({ state: "running", node: result.node, vmid: result.vmid, address: result.address });
  expect(record.services).toEqual(result.services);
});

test("sets everything that was asked for on the container", async () => {
  const { vmid } = await provisionOne(bed.fleet, {
    node: "pve2",
    cores: 3,
    cpulimit: 1.5,
    cpuunits: 200,
    memoryMib: 768,
    swapMib: 64,
    diskGib: 6,
    onboot: true,
    hostname: "box-{vmid}",
    network: { bridge: "vmbr0", vlan: 42, rateMbps: 12.5, mtu: 1_400, firewall: false, hwaddr: "BC:24:11:00:00:77" },
    mountPoints: [{ storage: "local-lvm", sizeGib: 2, path: "/data", backup: true }],
    startup: { order: 3, upDelaySec: 5, downDelaySec: 7 },
    features: { nesting: true },
    description: "made for a test",
    tags: ["team-a", "ci"],
  });
  const container = containerOf(bed, vmid);
  expect(container).toMatchObject({
    node: "pve2",
    name: `box-${vmid}`,
    config: {
      cores: "3",
      cpulimit: "1.5",
      cpuunits: "200",
      memory: "768",
      swap: "64",
      onboot: "1",
      rootfs: expect.stringContaining("size=6G"),
      mp0: expect.stringMatching(/^local-lvm:.*mp=\/data.*backup=1/),
      startup: "order=3,up=5,down=7",
      features: "nesting=1",
      description: expect.stringContaining("made for a test"),
    },
  });
  expect(container?.config["tags"]?.split(";").sort()).toEqual(["ci", "team-a"]);
  const net0 = container?.config["net0"]?.split(",") ?? [];
  expect(net0).toEqual(expect.arrayContaining(["bridge=vmbr0", "tag=42", "rate=12.5", "mtu=1400"]));
  expect(net0).toContain("hwaddr=BC:24:11:00:00:77");
  expect(net0.some((part) => part === "firewall=1")).toBe(false);
});

test("takes a template by VMID and by tag, linked by default and full on request", async () => {
  const linked = await provisionOne(bed.fleet, { template: 9_001 });
  expect(linked.node).toBe("pve1");
  expect(cloneParams(linked.vmid)["full"] ?? "0").toBe("0");
  const full = await provisionOne(bed.fleet, { template: 9_001, clone: "full", storage: "ceph" });
  expect(cloneParams(full.vmid)).toMatchObject({ full: "1", storage: "ceph" });
  expect(containerOf(bed, full.vmid)?.config["rootfs"]).toMatch(/^ceph:vm-/);
  const byTag = await provisionOne(bed.fleet, { template: "tagged", clone: "linked_or_full" });
  expect(byTag.node).toBe("pve1");
  expect(containerOf(bed, byTag.vmid)?.config["rootfs"]).toMatch(/^local:/);
});

/** Of the one request that made the container. */
function cloneParams(vmid: number): Record<string, string> {
  const clones = bed.pve
    .log()
    .filter(({ path, params }) => path.endsWith("/clone") && params["newid"] === String(vmid));
  expect(clones).toHaveLength(1);
  return clones[0]?.params ?? {};
}

test("gives service URLs that answer", async () => {
  const { sandboxId, services, hostname, address } = await provisionOne(bed.fleet, {
    services: [{ name: "web", port: 8_123 }],
    setup: ["echo from-the-sandbox > index.html"],
  });
  const serve = `${process.execPath} -e 'require("http").createServer((q,r)=>r.end(require("fs").readFileSync("index.html"))).listen(8123,process.env.SANDBOX_ADDRESS)'`;
  await run(bed.fleet, "exec", { sandboxId, command: `nohup ${serve} >/dev/null 2>&1 &` });
  const { url = "", level } = services[0] ?? {};
  expect([level, url]).toEqual(["lan_name", `http://${hostname}.lan:8123`]);
  // The DNS server of a LAN knows the names of its DHCP clients.
  await using dnsmasq = await startDnsmasq({ [`${hostname}.lan`]: address });
  const look = async () => {
    const asked = get(url, { agent: false, lookup: dnsmasq.lookup });
    const [response] = await once(asked, "response");
    return text(response);
  };
  const body = await until(() => look().catch(() => null), `an answer at ${url}`);
  expect(body.trim()).toBe("from-the-sandbox");
});

test("runs setup commands in order with the environment, which later execs have too", async () => {
  const { sandboxId, timings } = await provisionOne(bed.fleet, {
    env: { GREETING: "it's $HOME 'quoted'" },
    setup: ['echo "one $GREETING" >> setup.log', 'echo "two $GREETING" >> setup.log'],
  });
  expect(timings["setup"]).toBeGreaterThan(0);
  const { stdout } = await run(bed.fleet, "exec", { sandboxId, command: 'cat setup.log; echo "exec $GREETING"' });
  expect(stdout.trim().split("\n")).toEqual(["one", "two", "exec"].map((word) => `${word} it's $HOME 'quoted'`));
});

test("without execd it waits for the address alone", async () => {
  const { sandboxId, address } = await provisionOne(bed.fleet, { waitFor: "address" });
  expect(address).toMatch(/^127\./);
  const handle = await bed.fleet.exec({ sandboxId, command: "true" });
  await expect(handle.result({ timeoutMs: 60_000 })).rejects.toMatchObject({ code: "not_configured" });
});

test("a sandbox whose time is up is destroyed", async () => {
  const { sandboxId, vmid } = await provisionOne(bed.fleet, { ttlSeconds: 3_600 });
  const { expiresAt, runningAt } = await bed.fleet.sandboxes.get(sandboxId);
  expect(Math.abs((expiresAt ?? 0) - (runningAt ?? 0) - 3_600_000)).toBeLessThan(1_000);
  const gone = bed.fleet.events({ sandbox: sandboxId, types: ["sandbox.changed"] });
  // An hour passes.
  await bed.redis.zadd(bed.keys.expiries, Date.now() - 1, sandboxId);
  for await (const event of gone) {
    if (event.type === "sandbox.changed" && event.data.state === "destroyed") break;
  }
  expect(containerOf(bed, vmid)).toBeUndefined();
  expect(await bed.redis.zcard(bed.keys.expiries)).toBe(0);
});

test("its events come in the order of its states", async () => {
  const before = await bed.redis.xrevrange(bed.keys.events, "+", "-", "COUNT", 1);
  const { sandboxId, operationId } = await provisionOne(bed.fleet);
  const seen: string[] = [];
  for await (const event of bed.fleet.events({ after: before[0]?.[0] ?? "0", sandbox: sandboxId })) {
    expect(event).toMatchObject({ operation: operationId, team: "default" });
    seen.push(event.type === "sandbox.changed" ? event.data.state : event.type);
    if (event.type === "operation.succeeded") break;
  }
  expect(seen).toEqual([
    "operation.accepted",
    "cloning",
    "configuring",
    "starting",
    "readying",
    "running",
    "operation.succeeded",
  ]);
});
