import { describe, expect, test } from "vitest";
import {
  collectEnv,
  collectPairs,
  collectServices,
  parseCount,
  parseDurationMs,
  parseDurationSec,
  parseNumber,
  parseTemplate,
} from "../../../producers/cli/parse-values.ts";

test.each([
  ["90", 90_000],
  ["90s", 90_000],
  ["250ms", 250],
  ["1.5h", 5_400_000],
  ["7d", 604_800_000],
])("%s is %i ms", (text, ms) => expect(parseDurationMs(text)).toBe(ms));

test("seconds are rounded up, so that a short duration is not none", () => {
  expect(parseDurationSec("250ms")).toBe(1);
});

test("pairs hold everything after the first =", () => {
  expect(collectPairs("b==2", { a: "1" })).toEqual({ a: "1", b: "=2" });
  expect(collectPairs("a=")).toEqual({ a: "" });
});

test("a variable without a value is taken from here", () => {
  const collect = collectEnv({ TOKEN: "t" });
  expect(collect("A=1", collect("TOKEN"))).toEqual({ TOKEN: "t", A: "1" });
  expect(() => collect("ABSENT")).toThrow("ABSENT is not set");
});

test("services, templates and counts", () => {
  expect(collectServices("web:8080", [{ name: "a", port: 1 }])).toEqual([
    { name: "a", port: 1 },
    { name: "web", port: 8_080 },
  ]);
  expect([parseTemplate("9000"), parseTemplate("base-9000")]).toEqual([9_000, "base-9000"]);
  expect([parseCount("20"), parseNumber("-1.5")]).toEqual([20, -1.5]);
});

describe("refused", () => {
  test.each<[string, () => unknown]>([
    ["a duration without a number", () => parseDurationMs("soon")],
    ["a negative duration", () => parseDurationMs("-1s")],
    ["hexadecimal", () => parseNumber("0x10")],
    ["an empty number", () => parseNumber("")],
    ["none of it", () => parseCount("0")],
    ["a pair without a key", () => collectPairs("=v")],
    ["a service without a port", () => collectServices("web")],
  ])("%s", (_, parse) => expect(parse).toThrow());
});
