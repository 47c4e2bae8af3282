import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { createHostParser, findAmbiguity, parseHostHeader } from "../../../shared/url-pattern.ts";
import { fillPattern } from "../../../shared/urls.ts";

const GOOD = [
  "{service}-{vmid}.{domain}",
  "port-{port}-{id}.{domain}",
  "{service}.{id}.{domain}",
  "{id}-{port}",
  "{vmid}-{service}.x.{domain}",
  "{service}-{port}-{vmid}",
  "{service}-{vmid}.s.example.com",
];
const BAD = [
  "{service}-{id}.{domain}",
  "{service}{vmid}",
  "{port}{vmid}",
  "{service}-{port}-{id}",
  "{port}1{vmid}",
  "{vmid}-{service}-{vmid}",
];

describe("a URL pattern", () => {
  test.each(GOOD)("%s can't give two services one host", (pattern) => {
    expect(findAmbiguity(pattern)).toBeNull();
  });

  test.each(BAD)("%s is refused, with the reason", (pattern) => {
    expect(findAmbiguity(pattern)).toMatch(/\{(service|port|vmid|id)\}/);
  });

  const label = fc.stringMatching(/^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$/);
  test.each(GOOD)("%s reads back what it was filled with", (pattern) => {
    const parse = createHostParser(pattern, "s.example.com");
    fc.assert(
      fc.property(
        label,
        fc.integer({ min: 1, max: 65_535 }),
        fc.integer({ min: 100, max: 999_999_999 }),
        label,
        (name, port, vmid, id) => {
          const host = fillPattern(pattern, { name, port }, { id, vmid }, "s.example.com");
          const parts = parse(host);
          expect(parts).not.toBeNull();
          expect(parts?.service ?? name).toBe(name);
          expect(parts?.port ?? port).toBe(port);
          expect(parts?.vmid ?? vmid).toBe(vmid);
          expect(parts?.label ?? id).toBe(id);
        },
      ),
    );
  });

  test("passes nothing that only looks like it", () => {
    const parse = createHostParser("{service}-{vmid}.{domain}", "s.example.com");
    const none = [
      "s.example.com",
      "vscode-200.sxexample.com",
      "vscode-200.s.example.com.evil",
      "a.vscode-200.s.example.com",
      "-200.s.example.com",
      "vscode-0200.s.example.com",
      "vscode--.s.example.com",
    ];
    expect(none.map(parse)).toEqual(none.map(() => null));
    expect(createHostParser("port-{port}-{id}", "s.example.com")("port-65536-a.s.example.com")).toBeNull();
  });
});

describe("a Host header", () => {
  test("is a name in lower case, without its port", () => {
    expect(parseHostHeader("VSCode-200.S.example.com:8443")).toBe("vscode-200.s.example.com");
    expect(parseHostHeader("localhost")).toBe("localhost");
  });

  test.each([
    undefined,
    "",
    ".",
    "a.",
    ".a",
    "a..b",
    "a b",
    "a\r\nb",
    "[::1]",
    "127.0.0.1",
    "127.0.0.1:80",
    "bücher.example",
    "a:0",
    "a:65536",
    "a:b",
    "a@b",
    "a/b",
    "a\0",
    "-a.example",
    "a-.example",
    `${"a".repeat(64)}.example`,
    "a,b",
    "a%2eb",
    "a_b.example",
  ])("%j is none", (header) => {
    expect(parseHostHeader(header)).toBeNull();
  });
});
