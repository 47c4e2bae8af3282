import { randomBytes } from "node:crypto";
import { expect, test } from "vitest";
import { signLink, toLinkKeys, verifyLink } from "../../../shared/links.ts";

const [first, second] = [randomBytes(32), randomBytes(32)];
const target = { sandbox: "sbx_0123456789abcdef", service: "web", epoch: "e1" };
const signed = signLink(toLinkKeys([first]), target, { purpose: "link", expiresAtSec: 2_000 });
const verify = (
  change: Partial<typeof target>,
  more: Partial<{ token: string; purpose: "link" | "cookie"; nowSec: number }> = {},
) =>
  verifyLink(
    toLinkKeys([second, first]),
    { ...target, ...change },
    { token: signed, purpose: "link", nowSec: 1_000, ...more },
  );

test("a link lets into its service until it expires, also after the key was rotated", () => {
  expect(verify({})).toBe("valid");
  expect(verify({}, { nowSec: 2_000 })).toBe("expired");
});

test("a link is none for another sandbox, service, epoch, purpose, key or expiry", () => {
  expect(verify({ sandbox: "sbx_1123456789abcdef" })).toBe("invalid");
  expect(verify({ service: "web2" })).toBe("invalid");
  expect(verify({ epoch: "e2" })).toBe("invalid");
  expect(verify({}, { purpose: "cookie" })).toBe("invalid");
  expect(verifyLink(toLinkKeys([second]), target, { token: signed, purpose: "link", nowSec: 1_000 })).toBe("invalid");
  const [, signature] = signed.split(".");
  expect(verify({}, { token: `zzzzz.${signature}` })).toBe("invalid");
});

test.each(["", ".", "a", "a.b", `${signed}x`, ` ${signed}`, signed.replace(".", ".."), signed.toUpperCase()])(
  "%j is no link",
  (token) => {
    expect(verify({}, { token })).toBe("invalid");
  },
);
