/** One bad value for each field of a provision: the error names the field, says what is wrong, and what would be right. */
import { expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { parseInput } from "../../../shared/jobs/index.ts";
import { ProvisionInput } from "../../../shared/jobs/provision.ts";

/** By field path: a value that is refused there, and part of what is said. */
const BAD: Record<string, [input: object, says: RegExp]> = {
  memory: [{ memory: 512 }, /provision has no such field/],
  template: [{ template: "a b" }, /template's name or tag, a VMID as a number .*, or the id of a snapshot/],
  clone: [{ clone: "quick" }, /must be one of linked, full, linked_or_full/],
  sourceSnapshot: [{ sourceSnapshot: "1st" }, /snapshot's name/],
  node: [{ node: "pve_1" }, /./],
  "nodeLabels.0": [{ nodeLabels: ["a b"] }, /1 to 63 letters, digits, .* such as gpu or zone=a/],
  "antiAffinity.group": [{ antiAffinity: { group: "a/b" } }, /1 to 64 letters/],
  "antiAffinity.mode": [{ antiAffinity: { mode: "always" } }, /must be one of prefer, require/],
  storage: [{ storage: "../x", clone: "full" }, /storage's name, such as local-lvm/],
  pool: [{ pool: "a/b" }, /pool's name/],
  instanceId: [{ instanceId: "sbx-0000000000000000" }, /must not look like a sandbox id/],
  hostname: [{ hostname: "Web" }, /lower-case letters, digits, hyphens, \{vmid\} or \{id\}/],
  cores: [{ cores: 0 }, /must be at least 1/],
  cpulimit: [{ cpulimit: -1 }, /must be at least 0/],
  cpuunits: [{ cpuunits: 0 }, /must be at least 1/],
  memoryMib: [{ memoryMib: 15 }, /must be at least 16/],
  swapMib: [{ swapMib: -1 }, /must be at least 0/],
  diskGib: [{ diskGib: 0.5 }, /must be a whole number/],
  onboot: [{ onboot: "yes" }, /must be true or false/],
  "network.bridge": [{ network: { bridge: "vmbr0,tag=1" } }, /bridge's name, such as vmbr0/],
  "network.ip": [{ network: { ip: "10.0.0.300/24" } }, /IPv4 address with prefix length, such as 10\.0\.0\.5\/24/],
  "network.ip6": [{ network: { ip6: "fd00::5" } }, /IPv6 address with prefix length, such as fd00::5\/64/],
  "network.gateway": [{ network: { ip: "10.0.0.5/24", gateway: "10.0.0" } }, /IPv4/],
  "network.gateway6": [{ network: { gateway6: "10.0.0.1" } }, /IPv6/],
  "network.hwaddr": [{ network: { hwaddr: "01:00:5E:00:00:01" } }, /unicast MAC address, such as BC:24:11/],
  "network.vlan": [{ network: { vlan: 4_095 } }, /must be at most 4094/],
  "network.rateMbps": [{ network: { rateMbps: 0 } }, /must be more than 0/],
  "network.firewall": [{ network: { firewall: 1 } }, /must be true or false/],
  "network.mtu": [{ network: { mtu: 100 } }, /must be at least 576/],
  "mountPoints.0.storage": [{ mountPoints: [{ storage: "a,b", sizeGib: 1, path: "/x" }] }, /storage's name/],
  "mountPoints.0.sizeGib": [{ mountPoints: [{ storage: "a", sizeGib: 0, path: "/x" }] }, /must be at least 1/],
  "mountPoints.0.path": [{ mountPoints: [{ storage: "a", sizeGib: 1, path: "/x/../etc" }] }, /absolute path without/],
  "mountPoints.0.backup": [
    { mountPoints: [{ storage: "a", sizeGib: 1, path: "/x", backup: 1 }] },
    /must be true or false/,
  ],
  "mountPoints.0.readOnly": [
    { mountPoints: [{ storage: "a", sizeGib: 1, path: "/x", readOnly: 1 }] },
    /must be true or false/,
  ],
  mountPoints: [{ mountPoints: [1, 2].map(() => ({ storage: "a", sizeGib: 1, path: "/x" })) }, /paths must differ/],
  "startup.order": [{ startup: { order: -1 } }, /must be at least 0/],
  "startup.upDelaySec": [{ startup: { upDelaySec: 1.5 } }, /must be a whole number/],
  "startup.downDelaySec": [{ startup: { downDelaySec: 100_000 } }, /must be at most 86400/],
  "features.nesting": [{ features: { nesting: 1 } }, /must be true or false/],
  bwlimitKib: [{ bwlimitKib: -1, clone: "full" }, /must be at least 0/],
  description: [{ description: "a\0b" }, /NUL/],
  "tags.0": [{ tags: ["Prod!"] }, /lower-case letters, digits/],
  team: [{ team: "a b" }, /./],
  "metadata.k": [{ metadata: { k: "x".repeat(513) } }, /must have at most 512 characters/],
  "env.A-B": [{ env: { "A-B": "" } }, /variable's name: letters, digits and '_'/],
  "setup.0": [{ setup: [""] }, /must not be empty/],
  "services.0.name": [{ services: [{ name: "Web", port: 80 }] }, /./],
  "services.0.port": [{ services: [{ name: "web", port: 0 }] }, /must be at least 1/],
  services: [{ services: [80, 81].map((port) => ({ name: "web", port })) }, /names must differ/],
  waitFor: [{ waitFor: "login" }, /one of execd, address/],
  ttlSeconds: [{ ttlSeconds: 9 }, /must be at least 10/],
  ttlAction: [{ ttlAction: "explode" }, /one of destroy, stop, pause/],
  ttlExtendOnUse: [{ ttlExtendOnUse: "always" }, /true or false/],
  idleSeconds: [{ idleSeconds: 5 }, /10/],
  idleAction: [{ idleAction: "destroy" }, /one of pause, stop/],
  wakeOnHttp: [{ wakeOnHttp: 1 }, /must be true or false/],
  priority: [{ priority: "high" }, /one of interactive, batch/],
};

test("the exec daemon's port is exposed neither by a provision nor later", () => {
  const service = { name: "web", port: 39_375 };
  const why = /39375 is the exec daemon's port and is never exposed/;
  expect(() => parseInput("provision", { template: "t", services: [service] })).toThrow(why);
  expect(() => parseInput("expose", { sandboxId: "sbx_0000000000000000", ...service })).toThrow(why);
});

test("a field that is missing", () => {
  expect(() => parseInput("exec", { sandboxId: "sbx_0000000000000000" })).toThrow(
    "command: is missing; must be a string",
  );
});

test("no field is left out", () => {
  const covered = new Set(Object.keys(BAD).map((path) => path.split(".")[0]));
  expect(Object.keys(ProvisionInput.shape).filter((field) => !covered.has(field))).toEqual([]);
});

test.each(Object.entries(BAD))("%s", (path, [input, says]) => {
  const refused = () => parseInput("provision", { template: "base", ...input });
  expect(refused).toThrow(FleetError);
  try {
    refused();
  } catch (error) {
    expect(error).toMatchObject({ code: "invalid_input", facts: { fields: [path] } });
    expect(String(error)).toMatch(says);
  }
});
