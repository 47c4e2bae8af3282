import fc from "fast-check";
import { expect, test } from "vitest";
import { newOperationId, newSandboxId, ServiceName, TeamId, Vmid } from "../../../shared/ids.ts";
import {
  DESCRIPTION_LIMIT,
  formatDescription,
  hasToken,
  parseStamp,
  replaceStamp,
  replaceToken,
  type StampFacts,
} from "../../../workers/sandbox/stamp.ts";

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

const service = (name: string) => ({ name: ServiceName.parse(name), port: 80, auth: "link" as const, epoch: "e1" });
const factsOf = (more: Partial<StampFacts>): StampFacts => ({
  template: "base",
  services: [service("web")],
  metadata: {},
  ttlAction: "stop",
  ttlExtendOnUse: true,
  idleAction: "pause",
  wakeOnHttp: false,
  ...more,
});

/** zod keeps none of that name. */
const key = fc.string().filter((name) => name !== "__proto__");

test("a stamp that follows its record takes its line's place, and nothing else changes", () => {
  fc.assert(
    fc.property(fc.array(fc.string()), fc.dictionary(key, fc.string()), (texts, metadata) => {
      // A human may write above it, too.
      const others = texts
        .map((text) => text.replaceAll(/[\r\n]/g, " "))
        .filter((text) => !text.startsWith("sandbox-fleet "));
      const [above, ...below] = others;
      const before = [
        above,
        ...formatDescription(stamp, { token: TOKEN, text: undefined }).split("\n"),
        ...below,
        "end",
      ];
      const lines = before.filter((line) => line !== undefined);
      const after = replaceStamp(`${lines.join("\n")}\n`, { ...stamp, facts: factsOf({ metadata }) });
      expect(parseStamp(after, 20_001)).toEqual({ v: 1, ...stamp, facts: factsOf({ metadata }) });
      const rest = (text: string) => text.split("\n").filter((line) => !line.startsWith("sandbox-fleet "));
      expect(rest(after)).toEqual(rest(lines.join("\n")));
    }),
  );
});

test("what has no room is left out and counted, the longest metadata first, then services; the owner is always told", () => {
  const metadata = Object.fromEntries(Array.from({ length: 30 }, (_, at) => [`key${at}`, "\u00fc".repeat(16 * at)]));
  const many = Array.from({ length: 40 }, (_, at) => service(`s${at}`));
  const room = (text: string) =>
    formatDescription({ ...stamp, facts: factsOf({ metadata, services: many }) }, { token: TOKEN, text });
  const short = room("mine");
  expect(parseStamp(short, 20_001)?.facts).toMatchObject({ services: many, cut: { services: 0 } });
  const cut = parseStamp(short, 20_001)?.facts?.cut?.metadata ?? 0;
  expect(Object.keys(parseStamp(short, 20_001)?.facts?.metadata ?? {})).toEqual(
    Array.from({ length: 30 - cut }, (_, at) => `key${at}`),
  );
  const shorter = parseStamp(room("m".repeat(6_000)), 20_001);
  expect(shorter?.facts).toMatchObject({ metadata: {}, cut: { metadata: 30 } });
  expect(shorter?.facts?.services.length).toBeLessThan(40);
  const none = room("m".repeat(DESCRIPTION_LIMIT - 350));
  expect(parseStamp(none, 20_001)).toEqual({ v: 1, ...stamp });
  for (const text of [short, none]) expect(text.length).toBeLessThanOrEqual(DESCRIPTION_LIMIT);
});

test("facts that another version wrote make a stamp no less ours", () => {
  const text = formatDescription(stamp, { token: null, text: undefined }).replace(/}$/, ',"facts":{"new":1}}');
  expect(parseStamp(text, 20_001)).toEqual({ v: 1, ...stamp });
});
