import { expect, test } from "vitest";
import { nameWithin, toDirection, toPlace } from "../../../producers/cli/copy-place.ts";

test("a sandbox and its path, or a path here", () => {
  expect(toPlace("20001:/a b:c")).toEqual({ sandbox: "20001", path: "/a b:c" });
  for (const path of ["/a:b", "./a:b", "a/b:/c", "-", "", ":/x"]) expect(toPlace(path)).toEqual({ path });
  expect(() => toPlace("box:etc")).toThrow("absolute");
});

test("exactly one of them is in a sandbox", () => {
  const [here, there] = [toPlace("a"), toPlace("box:/a")];
  expect([toDirection(here, there), toDirection(there, here)]).toEqual(["upload", "download"]);
  for (const both of [here, there]) expect(() => toDirection(both, both)).toThrow("SANDBOX:PATH");
});

test("a target that ends in / takes the source under its own name", () => {
  expect(nameWithin("/etc/app/", "./conf/app.conf")).toBe("/etc/app/app.conf");
  expect(nameWithin("/workspace/", "src/")).toBe("/workspace/src");
  expect(nameWithin("/workspace", "src")).toBe("/workspace");
  for (const from of ["-", ".", "..", "/"]) expect(() => nameWithin("/workspace/", from)).toThrow("name");
});
