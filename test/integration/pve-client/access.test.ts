import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { createPveApi } from "../../../workers/pve/api.ts";
import { createPveHttp } from "../../../workers/pve/http.ts";
import { makeCertificate } from "../../pve/certificate.ts";
import { startScripted } from "./scripted.ts";
import { call, failure, node, type StandIn, startStandIn, vmid } from "./stand-in.ts";

let standIn: StandIn;
beforeAll(async () => {
  standIn = await startStandIn({ timings: { authDelay: 3_000 } });
});
afterAll(() => standIn[Symbol.asyncDispose]());
afterEach(() => vi.restoreAllMocks());

describe("a token", () => {
  it("that PVE does not take is unauthorized, after PVE's three seconds, and is not shown", async () => {
    const token = "root@pam!fleet=11111111-2222-3333-4444-555555555555";
    const error = await failure(createPveApi(standIn.client({ token })).version(call()));
    expect(error).toMatchObject({ code: "unauthorized", policy: "overload" });
    expect(String(error)).toContain("invalid token value");
    expect(JSON.stringify(error) + String(error)).not.toContain("11111111");
    expect(standIn.reports.at(-1)).toMatchObject({ status: 401 });
    expect(standIn.reports.at(-1)?.ms).toBeGreaterThan(2_900);
  });

  it("without a privilege is told which one, where, and how to get it", async () => {
    const token = standIn.pve.addToken({ user: "cmux@pve", id: "poor", privileges: { "/nodes": ["Sys.Audit"] } });
    const error = await failure(createPveApi(standIn.client({ token })).lxc(node("pve1"), vmid(9001)).config(call()));
    expect(error).toMatchObject({ code: "forbidden", facts: { privilege: "VM.Audit", path: "/vms/9001" } });
    expect(String(error)).toContain(
      "pveum acl modify /vms --users 'cmux@pve' --tokens 'cmux@pve!poor' --roles PVEVMAdmin",
    );
  });

  it("that PVE has refused is not sent again for three seconds, then once for all who ask", async () => {
    await using quick = await startStandIn({ timings: { authDelay: 20 } });
    const { api, pve } = quick;
    const sent = () => quick.seen().length;
    const now = performance.now.bind(performance);
    const inSeconds = (seconds: number) =>
      vi.spyOn(performance, "now").mockImplementation(() => now() + 1_000 * seconds);
    pve.changeToken(pve.token, { disabled: true });
    await failure(api.version(call()));
    const held = await failure(api.lxc(node("pve1"), vmid(9_001)).start(call()));
    expect(held).toMatchObject({ code: "unauthorized", facts: { vmid: 9_001 } });
    expect(sent()).toBe(1);
    inSeconds(4);
    await Promise.all(Array.from({ length: 9 }, () => failure(api.version(call()))));
    expect(sent()).toBe(2);
    pve.changeToken(pve.token, { disabled: false });
    expect(await failure(api.version(call()))).toMatchObject({ code: "unauthorized" });
    inSeconds(8);
    await api.version(call());
    await Promise.all(Array.from({ length: 9 }, () => api.version(call())));
    expect(sent()).toBe(12);
  });

  it("that can't be one is refused before it goes anywhere", () => {
    for (const token of ["", "root@pam", "root@pam!fleet", "root@pam!fleet=a\r\nx: y", "root@pam!fleet=a b"]) {
      const target = { hosts: [standIn.pve.url], token, tls: { verify: true } };
      expect(() => createPveHttp(target)).toThrow(expect.objectContaining({ code: "not_configured" }));
    }
  });
});

describe("a certificate", () => {
  /** One request with this trust, and what of it PVE has seen. */
  async function tryWith(tls: Parameters<StandIn["client"]>[0]["tls"], hosts = [standIn.pve.url]) {
    const before = standIn.seen().length;
    const http = standIn.client({ hosts, ...(tls === undefined ? {} : { tls }) });
    const result = await createPveApi(http)
      .version(call())
      .catch((error: unknown) => error);
    return { result, seen: standIn.seen().length - before };
  }

  it("that nobody vouches for is refused, with its fingerprint and how to pin it, and sees no token", async () => {
    const { result, seen } = await tryWith({ verify: true });
    const { fingerprint } = standIn.pve;
    expect(result).toMatchObject({ code: "tls_untrusted", facts: { fingerprint, host: standIn.pve.url } });
    expect(String(result)).toContain(`PVE_TLS_FINGERPRINT=${fingerprint}`);
    expect(String(result)).toContain("PVE_CA_FILE");
    expect(seen).toBe(0);
  });

  it("is taken when it is the pinned one, in any spelling, also as one of several", async () => {
    const { fingerprint } = standIn.pve;
    const other = fingerprint.replaceAll(/../g, (byte) => (byte === "00" ? "01" : "00"));
    const spellings = [
      fingerprint,
      fingerprint.toLowerCase(),
      fingerprint.replaceAll(":", ""),
      `${other}, ${fingerprint}`,
    ];
    for (const spelling of spellings) {
      expect(await tryWith({ verify: true, fingerprint: spelling })).toMatchObject({ result: { version: "8.4.1" } });
    }
  });

  it("is refused when another one is pinned, even if nothing else was to be verified", async () => {
    const other = Array.from({ length: 32 }, () => "AB").join(":");
    for (const verify of [true, false]) {
      const { result, seen } = await tryWith({ verify, fingerprint: other });
      expect(result).toMatchObject({ code: "tls_untrusted", facts: { fingerprint: standIn.pve.fingerprint } });
      expect(String(result)).toContain(other);
      expect(seen).toBe(0);
    }
  });

  it("is taken when its CA is", async () => {
    expect(await tryWith({ verify: true, caPem: standIn.pve.caPem })).toMatchObject({ result: { version: "8.4.1" } });
  });

  it("of another CA is refused", async () => {
    await using stranger = await startStandIn({ nodes: 1 });
    const { result, seen } = await tryWith({ verify: true, caPem: stranger.pve.caPem });
    expect(result).toMatchObject({ code: "tls_untrusted" });
    expect(seen).toBe(0);
  });

  const DAY_MS = 86_400_000;
  const ago = (days: number) => new Date(Date.now() - days * DAY_MS);
  it.each([
    [
      "for other names",
      { names: ["pve1.example.com", "pve1"] },
      /is for other names: DNS:pve1\.example\.com, DNS:pve1\. Use one of them in PVE_API_URL; or set PVE_TLS_FINGERPRINT=/,
    ],
    [
      "that has expired",
      { notBefore: ago(20), notAfter: ago(10) },
      /has expired on .* GMT\. Renew it on the node .*; or set PVE_TLS_FINGERPRINT=/,
    ],
    [
      "that is not valid yet",
      { notBefore: ago(-10), notAfter: ago(-20) },
      /is valid from .* GMT on\. Set the clocks of this machine and the node; or set PVE_TLS_FINGERPRINT=/,
    ],
  ])("%s is refused though its CA is known, and taken when it is pinned", async (_, more, says) => {
    await using server = await startScripted(
      (response) => response.end('{"data":{"version":"8.4.1","release":"8.4"}}'),
      await makeCertificate(more),
    );
    const { url, caPem, fingerprint } = server;
    const { result } = await tryWith({ verify: true, caPem }, [url]);
    expect(result).toMatchObject({ code: "tls_untrusted", facts: { fingerprint, host: url } });
    expect(String(result)).toMatch(says);
    expect(server.requests).toEqual([]);
    expect(await tryWith({ verify: true, caPem, fingerprint }, [url])).toMatchObject({ result: { version: "8.4.1" } });
  });

  it("is taken from anyone only when verification is off", async () => {
    expect(await tryWith({ verify: false })).toMatchObject({ result: { version: "8.4.1" } });
  });
});

describe("a host", () => {
  it("is spoken to over TLS only", () => {
    for (const host of ["http://127.0.0.1:8006", "127.0.0.1:8006", "pve1", ""]) {
      const target = { hosts: [host], token: standIn.pve.token, tls: { verify: true } };
      expect(() => createPveHttp(target)).toThrow(expect.objectContaining({ code: "not_configured" }));
    }
  });

  it("is needed", () => {
    const target = { hosts: [], token: standIn.pve.token, tls: { verify: true } };
    expect(() => createPveHttp(target)).toThrow(FleetError);
  });
});
