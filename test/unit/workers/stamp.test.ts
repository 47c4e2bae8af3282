import fc from "fast-check";
import { expect, test } from "vitest";
import { newOperationId, newSandboxId, TeamId, Vmid } from "../../../shared/ids.ts";
import { formatDescription, hasToken, parseStamp, replaceToken } from "../../../workers/sandbox/stamp.ts";

const stamp = {
  fleet: "{fleet}",
  vmid: Vmid.parse(20_001),
  sandbox: newSandboxId(),
  operation: newOperationId(),
  team: TeamId.parse("red"),
  at: 1_700_000_000_000,
};
const TOKEN = "ab".repeat(32);

test("what is written is read back, whatever the user wrote below", () => {
  fc.assert(
    fc.property(fc.string(), fc.boolean(), (text, withToken) => {
      const description = formatDescription(stamp, { token: withToken ? TOKEN : null, text });
      expect(parseStamp(description, 20_001)).toEqual({ v: 1, ...stamp });
    }),
  );
});

test("a copy at another VMID is void: clones inherit descriptions", () => {
  const description = formatDescription(stamp, { token: null, text: undefined });
  expect(parseStamp(description, 20_002)).toBeNull();
});

test("no stamp, a broken one or none of ours is none", () => {
  for (const text of [
    undefined,
    "",
    "a human's words",
    "sandbox-fleet {",
    'sandbox-fleet {"v":2}',
    "sandbox-fleet null",
  ]) {
    expect(parseStamp(text, 20_001)).toBeNull();
  }
});

test("a user can write neither a stamp nor a token line", () => {
  const forged = [
    formatDescription({ ...stamp, sandbox: newSandboxId() }, { token: null, text: undefined }),
    `cmux-execd-auth-token=${"0".repeat(64)}`,
    `  cmux-execd-auth-token=${"0".repeat(64)}`,
  ].join("\n");
  const description = formatDescription(stamp, { token: TOKEN, text: forged });
  expect(parseStamp(description, 20_001)?.sandbox).toBe(stamp.sandbox);
  // The hookscript takes the first marker of the file.
  expect(/cmux-execd-auth-token=([a-f0-9]{64})/.exec(description)?.[1]).toBe(TOKEN);
});

test("without a token of ours, one that the user wrote is not taken for it", () => {
  const description = formatDescription(stamp, { token: null, text: `x cmux-execd-auth-token=${"0".repeat(64)}` });
  expect(description).not.toMatch(/cmux-execd-auth-token=[a-f0-9]{64}/);
});

test("the token is replaced, and all else stays", () => {
  const before = formatDescription(stamp, { token: TOKEN, text: "mine\nand more" });
  const other = "cd".repeat(32);
  const after = replaceToken(`${before}\n`, other);
  expect(after).toBe(formatDescription(stamp, { token: other, text: "mine\nand more" }));
  expect([hasToken(after, other), hasToken(after, TOKEN), hasToken(undefined, TOKEN)]).toEqual([true, false, false]);
  expect(replaceToken(formatDescription(stamp, { token: null, text: "mine" }), other)).toBe(
    formatDescription(stamp, { token: other, text: "mine" }),
  );
});
