import { describe, expect, test } from "vitest";
import { newSandboxId, ServiceName } from "../../../shared/ids.ts";
import { parseRedisUrl } from "../../../shared/redis/connect.ts";
import { fillPattern, resolveUrl } from "../../../shared/urls.ts";

const service = { name: ServiceName.parse("web"), port: 8_000, epoch: "e" };
const id = newSandboxId();
const facts = { id, vmid: 20_001, hostname: "cmux-20001", dnsSearch: "lan.example", address: "10.0.0.5" };
const none = { publicDomain: undefined, pattern: "{service}-{vmid}.{domain}" };

describe("a service's URL", () => {
  test("is the best that can work, and says why not better", () => {
    expect(resolveUrl(service, facts, { ...none, publicDomain: "s.example.com" })).toEqual({
      ...service,
      url: "https://web-20001.s.example.com",
      level: "public",
      auth: "link",
    });
    expect(resolveUrl(service, facts, none)).toEqual({
      ...service,
      url: "http://cmux-20001.lan.example:8000",
      level: "lan_name",
      auth: "none",
      reason: "PVE_PUBLIC_DOMAIN is not set",
    });
    expect(resolveUrl(service, { ...facts, dnsSearch: undefined }, none)).toEqual({
      ...service,
      url: "http://10.0.0.5:8000",
      level: "lan_address",
      auth: "none",
      reason: "PVE_PUBLIC_DOMAIN is not set; the node has no DNS search domain",
    });
  });

  test("names the instance as its caller does; a name that no host can have is refused", () => {
    const named = { ...facts, instanceId: "pvelxc-1a2b3c4d" };
    const settings = { publicDomain: "s.example.com", pattern: "port-{port}-{id}.{domain}" };
    expect(resolveUrl(service, named, settings).url).toBe("https://port-8000-pvelxc-1a2b3c4d.s.example.com");
    const long = { ...named, instanceId: "x".repeat(60) };
    expect(() => resolveUrl(service, long, settings)).toThrow(/url_unresolvable: port-8000-x+ is no host name/);
  });

  test("of an IPv6 address has brackets", () => {
    const { url } = resolveUrl(service, { ...facts, dnsSearch: "", address: "fd00::5" }, none);
    expect(url).toBe("http://[fd00::5]:8000");
    expect(new URL(url).port).toBe("8000");
  });

  test("that cannot work is never given out", () => {
    const nowhere = { ...facts, dnsSearch: undefined, address: undefined };
    expect(() => resolveUrl(service, nowhere, none)).toThrow(/url_unresolvable/);
  });

  test("fills every part of a pattern, and ids become host labels", () => {
    const fill = (pattern: string) => fillPattern(pattern, service, { id, vmid: 7 }, "s.example.com");
    expect(fill("{service}.{id}.{domain}")).toBe(`web.${id.replace("_", "-")}.s.example.com`);
    expect(fill("p{port}-{vmid}")).toBe("p8000-7.s.example.com");
  });
});

describe("a Redis URL", () => {
  test.each([
    ["redis://h", { kind: "single", hosts: [{ host: "h", port: 6_379 }], db: 0, tls: false }],
    ["rediss://u:p%40ss@h:7000/3", { kind: "single", username: "u", password: "p@ss", db: 3, tls: true }],
    ["redis://[::1]:6380", { hosts: [{ host: "::1", port: 6_380 }] }],
    [
      "redis-sentinel://:secret@a:1,b,c:3/2?master=mine",
      {
        kind: "sentinel",
        hosts: [
          { host: "a", port: 1 },
          { host: "b", port: 26_379 },
          { host: "c", port: 3 },
        ],
        password: "secret",
        master: "mine",
        db: 2,
      },
    ],
    ["rediss://h?ca=/a.pem&cert=/b%20c.pem", { tls: true, files: { ca: "/a.pem", cert: "/b c.pem" } }],
    ["rediss-cluster://a:7000,b:7001", { kind: "cluster", tls: true, hosts: [{ port: 7_000 }, { port: 7_001 }] }],
  ])("%s", (url, expected) => {
    expect(parseRedisUrl(url)).toMatchObject(expected);
  });
});
