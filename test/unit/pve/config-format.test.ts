import fc from "fast-check";
import { describe, expect, it } from "vitest";
import * as format from "../../../workers/pve/config-format.ts";

const word = fc.stringMatching(/^[a-z][a-z0-9.:/_-]{0,12}$/);
const number = fc.integer({ min: 0, max: 65_535 });
/** Keys of our own that no version of PVE has, so that they land in `others`. */
const others = fc.dictionary(fc.stringMatching(/^x-[a-z]{1,6}$/), word, {
  minKeys: 1,
  maxKeys: 3,
  noNullPrototype: true,
});
const some = <T>(fields: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record(fields, { requiredKeys: [], noNullPrototype: true });

describe("netN", () => {
  it("reads what PVE writes", () => {
    expect(format.parseNet("name=eth0,bridge=vmbr0,hwaddr=BC:24:11:E6:DA:4F,ip=10.10.10.100/24,type=veth")).toEqual({
      name: "eth0",
      bridge: "vmbr0",
      hwaddr: "BC:24:11:E6:DA:4F",
      ip: "10.10.10.100/24",
      type: "veth",
    });
    expect(format.parseNet("name=eth0,firewall=1,gw=10.0.0.1,host-managed=1,link_down=0,rate=2.5,tag=7")).toEqual({
      name: "eth0",
      firewall: true,
      gw: "10.0.0.1",
      linkDown: false,
      rate: 2.5,
      tag: 7,
      others: { "host-managed": "1" },
    });
  });

  it("comes back from its text", () => {
    const rest = some({
      bridge: word,
      hwaddr: word,
      ip: word,
      ip6: word,
      gw: word,
      gw6: word,
      tag: number,
      rate: fc.integer({ min: 1, max: 9_999 }).map((n) => n / 10),
      firewall: fc.boolean(),
      mtu: number,
      type: word,
      linkDown: fc.boolean(),
      others,
    });
    fc.assert(
      fc.property(word, rest, (name, fields) => {
        const net = { name, ...fields };
        expect(format.parseNet(format.formatNet(net))).toEqual(net);
      }),
    );
  });

  it.each(["bridge=vmbr0", "name=eth0,name=eth1", "name=eth0,vmbr0", "name=,bridge=x", "name=eth0,tag=x"])(
    "refuses %j",
    (text) => {
      expect(() => format.parseNet(text)).toThrow(expect.objectContaining({ code: "invalid_input" }));
    },
  );

  it("lets no value write further properties", () => {
    expect(() => format.formatNet({ name: "eth0", ip: "dhcp,bridge=vmbr1" })).toThrow("invalid_input");
    expect(() => format.formatNet({ name: "eth0", ip: "dhcp\nlock: backup" })).toThrow("invalid_input");
  });
});

describe("rootfs and mpN", () => {
  it("reads what PVE writes", () => {
    expect(format.parseMount("btr:201/vm-201-disk-0.raw,size=1G")).toEqual({
      volume: "btr:201/vm-201-disk-0.raw",
      size: "1G",
    });
    expect(format.parseMount("volume=local-lvm:vm-1-disk-1,mp=/data,backup=1,mountoptions=noatime;nodev")).toEqual({
      volume: "local-lvm:vm-1-disk-1",
      mp: "/data",
      backup: true,
      mountOptions: ["noatime", "nodev"],
    });
  });

  it("writes the volume first and without a key", () => {
    expect(format.formatMount({ mp: "/data", volume: "local-lvm:8", backup: false })).toBe(
      "local-lvm:8,mp=/data,backup=0",
    );
  });

  it("comes back from its text", () => {
    const rest = some({
      mp: word,
      size: word,
      backup: fc.boolean(),
      ro: fc.boolean(),
      quota: fc.boolean(),
      acl: fc.boolean(),
      replicate: fc.boolean(),
      shared: fc.boolean(),
      mountOptions: fc.array(fc.stringMatching(/^[a-z]{3,8}$/), { minLength: 1, maxLength: 3 }),
      others,
    });
    fc.assert(
      fc.property(word, rest, (volume, fields) => {
        const mount = { volume, ...fields };
        expect(format.parseMount(format.formatMount(mount))).toEqual(mount);
      }),
    );
  });

  it("knows a volume's storage", () => {
    expect(format.storageOf("local-lvm:vm-201-disk-0")).toBe("local-lvm");
    expect(format.storageOf("/srv/data")).toBeUndefined();
  });
});

describe("startup and features", () => {
  it("come back from their texts", () => {
    fc.assert(
      fc.property(some({ order: number, up: number, down: number }), (startup) => {
        expect(format.parseStartup(format.formatStartup(startup))).toEqual(startup);
      }),
    );
    const features = some({
      nesting: fc.boolean(),
      keyctl: fc.boolean(),
      fuse: fc.boolean(),
      mknod: fc.boolean(),
      mount: fc.array(fc.stringMatching(/^[a-z]{3,6}$/), { minLength: 1, maxLength: 3 }),
      others,
    });
    fc.assert(
      fc.property(features, (each) => {
        expect(format.parseFeatures(format.formatFeatures(each))).toEqual(each);
      }),
    );
  });

  it("takes a startup order without its key", () => {
    expect(format.parseStartup("3,up=30")).toEqual({ order: 3, up: 30 });
  });
});

describe("tags", () => {
  it("are read with any of PVE's separators and written with ';'", () => {
    expect(format.parseTags("a;b c,d")).toEqual(["a", "b", "c", "d"]);
    expect(format.parseTags("")).toEqual([]);
    expect(format.formatTags(["fleet", "team-1"])).toBe("fleet;team-1");
    expect(() => format.formatTags(["a b"])).toThrow("invalid_input");
  });
});

describe("env", () => {
  it("comes back from its text", () => {
    const value = fc.string().filter((text) => !/[\0\n\r]/.test(text));
    const env = fc.dictionary(fc.stringMatching(/^[A-Z_][A-Z0-9_]{0,8}$/), value, { noNullPrototype: true });
    fc.assert(
      fc.property(env, (each) => {
        expect(format.parseEnv(format.formatEnv(each))).toEqual(each);
      }),
    );
  });

  it("keeps the value's own equals signs", () => {
    expect(format.parseEnv("A=b=c\0D=")).toEqual({ A: "b=c", D: "" });
  });

  it("shows neither name nor value when it refuses", () => {
    for (const env of [{ SECRET: "hunter\n22" }, { "hunter=22": "x" }]) {
      expect(() => format.formatEnv(env)).toThrow(
        expect.objectContaining({ message: expect.not.stringContaining("hunter") }),
      );
    }
  });
});

describe("sizes", () => {
  it.each([
    ["4G", 4096],
    ["512M", 512],
    ["1T", 1_048_576],
    ["1.5G", 1536],
    ["4GiB", 4096],
    ["1048576", 1],
    ["512K", 0.5],
  ])("%s is %d MiB", (text, mib) => {
    expect(format.parseSizeMib(text)).toBe(mib);
  });

  it("comes back from its text", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 40 }), (mib) => {
        expect(format.parseSizeMib(format.formatSizeMib(mib))).toBe(mib);
      }),
    );
  });

  it.each(["", "G", "-1G", "4 G", "4g", "1e3M"])("refuses %j", (text) => {
    expect(() => format.parseSizeMib(text)).toThrow("invalid_input");
  });
});
