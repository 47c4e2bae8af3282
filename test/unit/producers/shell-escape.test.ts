import { expect, test } from "vitest";
import { createEscape } from "../../../producers/cli/shell-escape.ts";

test.each<[string, string[], string, boolean]>([
  ["keys pass as they are", ["ls ~.\r", "a~."], "ls ~.\ra~.", false],
  ["~. at the very beginning leaves", ["~."], "", true],
  ["~. after Enter leaves, also key by key", ["x\r", "~", ".", "y"], "x\r", true],
  ["a tilde that is something else passes with the next key", ["\r~", "/", "\r"], "\r~/\r", false],
  ["~~ is one tilde", ["\r~~."], "\r~.", false],
])("%s", (_, typed, passed, leaves) => {
  const feed = createEscape();
  let all = "";
  for (const text of typed) {
    const { pass, leave } = feed(Buffer.from(text));
    all += pass;
    if (leave) return expect([all, leave]).toEqual([passed, leaves]);
  }
  expect([all, false]).toEqual([passed, leaves]);
});
