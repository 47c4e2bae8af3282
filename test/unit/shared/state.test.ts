/** What lies in Redis: records, secrets, cursors, ids. */
import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { FleetError } from "../../../shared/errors.ts";
import {
  NodeName,
  newFence,
  newOperationId,
  newSandboxId,
  newSnapshotId,
  ServiceName,
  TeamId,
  Vmid,
} from "../../../shared/ids.ts";
import { remember } from "../../../shared/remember.ts";
import { decodeHash, encodeFields, toHash } from "../../../shared/state/codec.ts";
import { checkCursor } from "../../../shared/state/events.ts";
import { hasConfigEnv } from "../../../shared/state/inventory.ts";
import { createKeys } from "../../../shared/state/keys.ts";
import { open, seal } from "../../../shared/state/secrets.ts";

describe("a record in a hash", () => {
  const Schema = z.object({
    name: z.string(),
    mode: z.enum(["a", "b"]),
    note: z.string().optional(),
    count: z.number(),
    list: z.array(z.number()),
    facts: z.record(z.string(), z.unknown()).default({}),
  });

  test("comes back as it was", () => {
    const record = fc.record({
      name: fc.string(),
      mode: fc.constantFrom("a" as const, "b" as const),
      note: fc.string(),
      count: fc.integer(),
      list: fc.array(fc.integer()),
      facts: fc.dictionary(
        fc.stringMatching(/^[a-z]{1,5}$/),
        fc.oneof(fc.string(), fc.integer(), fc.boolean(), fc.constant(null)),
      ),
    });
    fc.assert(
      fc.property(record, (one) => {
        const { set, unset } = encodeFields(one);
        expect(unset).toEqual([]);
        expect(decodeHash(Schema, toHash(set), "x")).toEqual(JSON.parse(JSON.stringify(one)));
      }),
    );
  });

  test("text that looks like JSON stays text", () => {
    const hash = toHash(encodeFields({ name: '{"a":1}', mode: "a", note: "null", count: 1, list: [] }).set);
    expect(decodeHash(Schema, hash, "x")).toMatchObject({ name: '{"a":1}', note: "null" });
  });

  test("null deletes a field, undefined leaves it", () => {
    expect(encodeFields({ a: null, b: undefined, c: 0 })).toEqual({ set: ["c", "0"], unset: ["a"] });
  });

  test("damage names the record and the field, not the value", () => {
    const damaged = { name: "x", mode: "a", count: "not-a-number", list: "[1" };
    const read = () => decodeHash(Schema, damaged, "operation op_1");
    expect(read).toThrow(/operation op_1 in Redis is damaged, or of a newer version: count, list/);
    expect(read).not.toThrow(/not-a-number/);
  });
});

describe("sealed text", () => {
  const [old, current, foreign] = [randomBytes(32), randomBytes(32), randomBytes(32)];

  test("opens under its owner with any key of the ring, and hides what it holds", () => {
    fc.assert(
      fc.property(fc.string({ minLength: 4 }), fc.string(), (text, owner) => {
        const sealed = seal(old, owner, text);
        expect(open([current, old], owner, sealed)).toBe(text);
        expect(Buffer.from(sealed).includes(Buffer.from(`.${text}.`))).toBe(false);
      }),
    );
    expect(seal(current, "op_1", "x")).not.toBe(seal(current, "op_1", "x"));
  });

  test("opens under no other owner, nor when it was changed", () => {
    const sealed = seal(current, "op_1", "value");
    expect(() => open([current], "op_2", sealed)).toThrow();
    const [id, nonce, tag, body = ""] = sealed.split(".");
    const flipped = Buffer.from(body, "base64url");
    flipped[0] = (flipped[0] ?? 0) ^ 1;
    expect(() => open([current], "op_1", [id, nonce, tag, flipped.toString("base64url")].join("."))).toThrow();
  });

  test("without its key it says which variable to set", () => {
    for (const ring of [[], [foreign]]) {
      const attempt = () => open(ring, "op_1", seal(current, "op_1", "value"));
      expect(attempt).toThrow(FleetError);
      expect(attempt).toThrow(/not_configured.*FLEET_SECRET_KEY/);
    }
  });
});

describe("ids", () => {
  test("look like what they are, and no two meet", () => {
    const made = Array.from({ length: 2_000 }, () => [
      newOperationId(),
      newSandboxId(),
      newSnapshotId(),
      newFence(),
    ]).flat();
    expect(new Set(made).size).toBe(8_000);
    for (const id of made) expect(id).toMatch(/^((op|sbx|snap)_)?[0-9a-z]{16}$/);
  });

  test.each([
    [ServiceName, ["web", "a", "a-1", "x".repeat(32)], ["", "Web", "1a", "-a", "a-", "a_b", "x".repeat(33)]],
    [NodeName, ["pve1", "PVE-2", "n"], ["", "-a", "a-", "a.b", "x".repeat(64)]],
    [TeamId, ["red", "a.b_c-d", "9"], ["", "-a", "a b", "x".repeat(65)]],
    [Vmid, [100, 999_999_999], [99, 1_000_000_000, 100.5]],
  ] as const)("%# take what is one and refuse what is not", (schema, good, bad) => {
    for (const value of good) expect(schema.safeParse(value).success, String(value)).toBe(true);
    for (const value of bad) expect(schema.safeParse(value).success, String(value)).toBe(false);
  });
});

test("every key carries the prefix, so that one Redis Cluster slot holds them all", () => {
  const keys = createKeys("{fleet}");
  for (const [name, key] of Object.entries(keys)) {
    if (name === "prefix") continue;
    expect(typeof key === "string" ? key : key("x"), name).toMatch(/^\{fleet\}:/);
  }
});

test("cursors: of an event, the beginning or the end, and nothing else", () => {
  for (const cursor of ["0", "$", "1700000000000-3"]) expect(checkCursor(cursor)).toBe(cursor);
  for (const cursor of ["", "1", "-", "1-2-3", "now"])
    expect(() => checkCursor(cursor)).toThrow(/invalid_input: after/);
});

test("a container's env can be configured from PVE 9.1 on", () => {
  const versions = { "7.4": false, "8.4.1": false, "9.0.3": false, "9.1": true, "9.2.11": true, "10.0": true };
  for (const [version, can] of Object.entries(versions)) expect(hasConfigEnv(version), version).toBe(can);
});

test("what was made of the latest texts is made once, and older ones are forgotten", () => {
  const made: string[] = [];
  const make = remember((text) => ({ at: made.push(text) }), { most: 2 });
  const first = make("a");
  expect(make("a")).toBe(first);
  make("b");
  make("c");
  make("c");
  make("a");
  expect(made).toEqual(["a", "b", "c", "a"]);
});
