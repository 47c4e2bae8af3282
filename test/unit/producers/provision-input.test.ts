import { expect, test } from "vitest";
import { toProvisionInput } from "../../../producers/cli/provision-input.ts";
import { parseInput } from "../../../shared/jobs/index.ts";

test("options become the input's fields", () => {
  const input = toProvisionInput({}, 9_000, {
    cores: 2,
    memory: 1_024,
    swap: 0,
    disk: 8,
    onboot: false,
    clone: "full",
    storage: "local-lvm",
    bwlimit: 1_000,
    batch: true,
    ip: "10.0.0.5/24",
    gateway: "10.0.0.1",
    rate: 10,
    firewall: false,
    nesting: true,
    tag: ["ci"],
    metadata: { run: "1" },
    env: { A: "1" },
    setup: ["true"],
    service: [{ name: "web", port: 80 }],
    ttl: 60,
    ttlAction: "stop",
    idle: 600,
    idleAction: "stop",
    wakeOnHttp: true,
  });
  expect(input).toEqual({
    template: 9_000,
    cores: 2,
    memoryMib: 1_024,
    swapMib: 0,
    diskGib: 8,
    onboot: false,
    clone: "full",
    storage: "local-lvm",
    bwlimitKib: 1_000,
    priority: "batch",
    network: { ip: "10.0.0.5/24", gateway: "10.0.0.1", rateMbps: 10, firewall: false },
    features: { nesting: true },
    tags: ["ci"],
    metadata: { run: "1" },
    env: { A: "1" },
    setup: ["true"],
    services: [{ name: "web", port: 80 }],
    ttlSeconds: 60,
    ttlAction: "stop",
    idleSeconds: 600,
    idleAction: "stop",
    wakeOnHttp: true,
  });
  expect(parseInput("provision", input)).toMatchObject(input);
});

test("a file's fields stay where no option names them", () => {
  const file = { template: "base", cores: 4, network: { bridge: "vmbr1", ip: "dhcp" }, metadata: { a: "1" } };
  expect(toProvisionInput(file, undefined, {})).toEqual(file);
  expect(toProvisionInput(file, "other", { ip: "lease", metadata: { b: "2" } })).toEqual({
    template: "other",
    cores: 4,
    network: { bridge: "vmbr1", ip: "lease" },
    metadata: { a: "1", b: "2" },
  });
});

test("what a file holds that is no field reaches the check, and is refused there", () => {
  const input = toProvisionInput({ template: "base", network: "fast", hookscript: "x" }, undefined, { vlan: 5 });
  expect(() => parseInput("provision", input)).toThrow("hookscript");
});
