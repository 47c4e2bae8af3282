/** From what was asked for, and what the clone has, to what PVE is told. */
import { BlockList } from "node:net";
import { describe, expect, test } from "vitest";
import { parseInput } from "../../../shared/jobs/index.ts";
import { usableAddresses } from "../../../workers/sandbox/address.ts";
import { changedParams, desiredConfig, desiredNet, rootfsGib } from "../../../workers/sandbox/configure-clone.ts";

const INHERITED = "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:AA:BB:CC,ip=dhcp,type=veth";
const NOTHING = { PVE_BRIDGE: undefined, PVE_GATEWAY: undefined };
const config = (more = {}) => ({ digest: "0", ...more });

describe("net0", () => {
  test("keeps what the template has, with the firewall on", () => {
    expect(desiredNet(INHERITED, {}, NOTHING, undefined)).toMatchObject({
      name: "eth0",
      bridge: "vmbr0",
      hwaddr: "BC:24:11:AA:BB:CC",
      ip: "dhcp",
      firewall: true,
    });
  });

  test("asked for comes over configured, configured over inherited", () => {
    const settings = { PVE_BRIDGE: "vmbr1", PVE_GATEWAY: "10.0.0.1" };
    expect(desiredNet(INHERITED, {}, settings, undefined)).toMatchObject({ bridge: "vmbr1", ip: "dhcp" });
    const asked = { bridge: "vmbr2", ip: "10.0.0.5/24", vlan: 7, firewall: false, hwaddr: "bc:24:11:00:00:01" };
    expect(desiredNet(INHERITED, asked, settings, undefined)).toMatchObject({
      bridge: "vmbr2",
      ip: "10.0.0.5/24",
      gw: "10.0.0.1",
      tag: 7,
      firewall: false,
      hwaddr: "BC:24:11:00:00:01",
    });
  });

  test("a gateway goes with a fixed address alone, and the template's with its own", () => {
    const fixed = INHERITED.replace("ip=dhcp", "gw=10.9.0.1,ip=10.9.0.9/24");
    expect(desiredNet(fixed, {}, NOTHING, undefined)).toMatchObject({ gw: "10.9.0.1", ip: "10.9.0.9/24" });
    const leased = desiredNet(fixed, {}, { ...NOTHING, PVE_GATEWAY: "10.0.0.1" }, "10.0.0.7/24");
    expect(leased).toMatchObject({ gw: "10.0.0.1", ip: "10.0.0.7/24" });
    expect(desiredNet(INHERITED, {}, { ...NOTHING, PVE_GATEWAY: "10.0.0.1" }, undefined)?.gw).toBeUndefined();
  });

  test("a template without one gets none, unless a bridge is known", () => {
    expect(desiredNet(undefined, {}, NOTHING, undefined)).toBeNull();
    expect(() => desiredNet(undefined, { vlan: 7 }, NOTHING, undefined)).toThrow(/invalid_input: network.bridge/);
    expect(desiredNet(undefined, { vlan: 7 }, { ...NOTHING, PVE_BRIDGE: "vmbr0" }, undefined)).toMatchObject({
      tag: 7,
    });
  });
});

describe("the rest of the config", () => {
  const desired = (input: object, has = {}) =>
    changedParams(config(has), desiredConfig(parseInput("provision", { template: "t", ...input }), config(has)));

  test("only what differs is sent, and nothing where nothing does", () => {
    expect(desired({})).toEqual({});
    expect(desired({ cores: 2, memoryMib: 512, onboot: false }, { cores: 2, memory: 512 })).toEqual({});
    expect(desired({ cores: 3, memoryMib: 512, onboot: true }, { cores: 2, memory: 512 })).toEqual({
      cores: 3,
      onboot: true,
    });
  });

  test("a mount that is there is not made twice", () => {
    const mountPoints = [
      { storage: "ceph", sizeGib: 2, path: "/a", backup: true, readOnly: true },
      { storage: "ceph", sizeGib: 3, path: "/b" },
    ];
    expect(desired({ mountPoints })).toEqual({ mp0: "ceph:2,mp=/a,backup=1,ro=1", mp1: "ceph:3,mp=/b" });
    expect(desired({ mountPoints }, { mp0: "ceph:vm-1-disk-1,mp=/a,size=2G" })).toEqual({ mp1: "ceph:3,mp=/b" });
  });

  test("nesting is set beside the features that the template has", () => {
    expect(desired({ features: { nesting: true } }, { features: "keyctl=1" })["features"]).toMatch(
      /keyctl=1.*nesting=1/,
    );
    expect(desired({ features: { nesting: true } }, { features: "nesting=1" })).toEqual({});
  });
});

test("the size of the root disk, where the config tells it", () => {
  expect(rootfsGib(config({ rootfs: "local-lvm:vm-1-disk-0,size=8G" }))).toBe(8);
  expect(rootfsGib(config({ rootfs: "local-lvm:vm-1-disk-0,size=512M" }))).toBe(0.5);
  expect(rootfsGib(config({ rootfs: "local:1/vm-1-disk-0.raw" }))).toBeUndefined();
  expect(rootfsGib(config())).toBeUndefined();
});

describe("an address counts", () => {
  const allowed = new BlockList();
  allowed.addSubnet("10.0.0.0", 8);
  allowed.addSubnet("fd00::", 8, "ipv6");
  /** Of Redis, say. */
  const machines = new Set(["10.0.0.9", "fd00::9"]);
  const MAC = "BC:24:11:AA:BB:CC";
  const of = (interfaces: object[]) =>
    usableAddresses(
      interfaces.map((one) => ({ name: "eth0", ...one })),
      MAC,
      { allowed, machines },
    );

  test("on the MAC of net0 and inside the allowed networks, IPv4 first", () => {
    const eth0 = { hwaddr: MAC.toLowerCase(), inet: "10.0.0.5/24", inet6: "fd00::5/64" };
    expect(of([eth0])).toEqual(["10.0.0.5", "fd00::5"]);
    expect(of([{ ...eth0, hwaddr: "BC:24:11:00:00:00" }])).toEqual([]);
    expect(of([{ ...eth0, inet: "192.0.2.1/24", inet6: "2001:db8::1/64" }])).toEqual([]);
  });

  test("not where it is one of the fleet's own machines'", () => {
    const taken = { hwaddr: MAC, inet: "10.0.0.9/24", inet6: "fd00::9/64" };
    expect(of([taken])).toEqual([]);
    expect(of([taken, { hwaddr: MAC, inet: "10.0.0.5/24" }])).toEqual(["10.0.0.5"]);
  });

  test("in PVE 9's form too, each once", () => {
    const addresses = ["fd00::5", "10.0.0.5", "not-an-address"].map((text) => ({
      "ip-address": text,
      prefix: 24,
      "ip-address-type": "inet",
    }));
    expect(of([{ "hardware-address": MAC, "ip-addresses": addresses, inet: "10.0.0.5/24" }])).toEqual([
      "10.0.0.5",
      "fd00::5",
    ]);
  });

  test("never without a MAC to hold on to", () => {
    expect(
      usableAddresses([{ name: "eth0", hwaddr: MAC, inet: "10.0.0.5/24" }], undefined, { allowed, machines }),
    ).toEqual([]);
  });
});
