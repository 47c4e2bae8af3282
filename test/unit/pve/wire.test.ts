import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeParams, pvePath, redact, secretsIn, toEndpoint, toWire } from "../../../workers/pve/wire.ts";
import { anyText } from "../../any-text.ts";

const UPID = "UPID:pve1:000003E8:00036332:6B048689:vzclone:100:root@pam!full:";

describe("paths", () => {
  it("encode what a value holds", () => {
    expect(pvePath`/nodes/${"pve1"}/tasks/${UPID}/status`).toBe(
      "/nodes/pve1/tasks/UPID%3Apve1%3A000003E8%3A00036332%3A6B048689%3Avzclone%3A100%3Aroot%40pam%21full%3A/status",
    );
  });

  it("can't be left through a value", () => {
    expect(pvePath`/snapshot/${"../../x?y#z"}`).toBe("/snapshot/..%2F..%2Fx%3Fy%23z");
    for (const value of ["..", ".", ""]) expect(() => pvePath`/snapshot/${value}/config`).toThrow("invalid_input");
  });

  it("become endpoints without values, for metrics", () => {
    expect(toEndpoint(pvePath`/nodes/${"pve1"}/lxc/${201}/snapshot/${"s1"}/rollback`)).toBe(
      "/nodes/{node}/lxc/{vmid}/snapshot/{snapname}/rollback",
    );
    expect(toEndpoint(pvePath`/nodes/${"pve1"}/tasks/${UPID}/status`)).toBe("/nodes/{node}/tasks/{upid}/status");
    expect(toEndpoint("/nodes/pve1/lxc")).toBe("/nodes/{node}/lxc");
    expect(toEndpoint("/cluster/resources")).toBe("/cluster/resources");
  });
});

describe("parameters", () => {
  it("write booleans as 1 and 0 and leave undefined out", () => {
    expect(encodeParams({ full: true, purge: false, storage: undefined, newid: 301 })).toBe("full=1&purge=0&newid=301");
  });

  it("refuse what is not a number", () => {
    expect(() => encodeParams({ memory: Number.NaN })).toThrow("invalid_input");
  });

  it("decode to what they were, NUL and line breaks included", () => {
    fc.assert(
      fc.property(fc.dictionary(fc.stringMatching(/^[a-z-]{1,9}$/), anyText(40)), (params) => {
        const decoded = new URLSearchParams(encodeParams(params));
        expect(Object.fromEntries(decoded)).toEqual({ ...params });
      }),
    );
    expect(encodeParams({ env: "A=1\0B=2 3" })).toBe("env=A%3D1%00B%3D2%203");
  });

  it("go into a form or a query, never into a DELETE's body", () => {
    expect(toWire("DELETE", "/x", { purge: true })).toEqual({ path: "/api2/json/x?purge=1" });
    expect(toWire("GET", "/x", { a: "b c" })).toEqual({ path: "/api2/json/x?a=b%20c" });
    expect(toWire("PUT", "/x", { a: 1 })).toEqual({ path: "/api2/json/x", body: "a=1" });
    expect(toWire("POST", "/x")).toEqual({ path: "/api2/json/x" });
  });

  it("refuse more than PVE takes before it is sent", () => {
    expect(() => toWire("POST", "/x", { a: "b".repeat(513 * 1024) })).toThrow("invalid_input");
  });
});

describe("secrets", () => {
  it("are the values of parameters that can hold them, also in parts", () => {
    const secrets = secretsIn({ env: "API_KEY=hunter22\0MODE=x", description: "stamp sealed", memory: 4096 });
    expect(redact("got 'hunter22', API_KEY=hunter22 and 4096", secrets)).toBe("got '…', … and 4096");
    expect(redact("about stamp sealed", secrets)).toBe("about …");
  });

  it("do not blot out texts for being short", () => {
    expect(redact("no such thing", secretsIn({ description: "o" }))).toBe("no such thing");
  });
});
