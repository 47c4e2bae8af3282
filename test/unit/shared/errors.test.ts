import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  FleetError,
  type FleetErrorCode,
  fromErrorRecord,
  POLICY,
  type Policy,
  retryDelayMs,
  toErrorRecord,
  toFleetError,
} from "../../../shared/errors.ts";

const CODES = Object.keys(POLICY) as FleetErrorCode[];

test("codes are facts in snake_case, and the message begins with the code", () => {
  for (const code of CODES) expect(code).toMatch(/^[a-z]+(_[a-z]+)*$/);
  expect(new FleetError("vmid_taken", "VMID 7 is in use").message).toBe("vmid_taken: VMID 7 is in use");
});

test("an error survives the way through a record", () => {
  const error = new FleetError("task_failed", "it broke", {
    facts: { node: "pve1", vmid: 7 },
    cause: new Error("why"),
  });
  const back = fromErrorRecord(JSON.parse(JSON.stringify(toErrorRecord(error))));
  expect(back).toMatchObject({ code: "task_failed", text: "it broke", facts: { node: "pve1", vmid: 7 } });
  expect(back.message).toBe(error.message);
});

test("more facts make a new error of the same code and cause", () => {
  const cause = new Error("why");
  const told = new FleetError("protected", "no", { facts: { vmid: 7 }, cause }).with({ undone: ["container"] });
  expect(told).toMatchObject({ code: "protected", facts: { vmid: 7, undone: ["container"] }, cause });
});

describe("any thrown thing becomes a FleetError", () => {
  test("its own as it is, an abort as its reason, a time-out as timeout", () => {
    const own = new FleetError("canceled", "stop");
    expect(toFleetError(own)).toBe(own);
    expect(toFleetError(new DOMException("late", "TimeoutError")).code).toBe("timeout");
    const aborted = Object.assign(new Error("aborted"), { name: "AbortError", cause: own });
    expect(toFleetError(aborted)).toBe(own);
  });

  test("what nobody foresaw is internal, and its text stays inside", () => {
    for (const thrown of [new TypeError("secret-value"), "secret-value", null, 7]) {
      const error = toFleetError(thrown);
      expect(error.code).toBe("internal");
      expect(error.message).not.toContain("secret-value");
      expect(error.cause).toBe(thrown);
    }
  });
});

describe("retry delays", () => {
  const middle = (policy: Policy, attempt: number) => retryDelayMs(policy, attempt, 0.5);

  test("double from the first to the last of their curve", () => {
    const attempts = [1, 2, 3, 4, 5, 6, 7];
    expect(attempts.map((n) => middle("transport", n))).toEqual([1, 2, 4, 8, 15, 15, 15].map((s) => s * 1_000));
    expect(attempts.map((n) => middle("lock", n))).toEqual([2, 4, 8, 16, 30, 30, 30].map((s) => s * 1_000));
    expect(attempts.map((n) => middle("overload", n))).toEqual([5, 10, 20, 40, 60, 60, 60].map((s) => s * 1_000));
    expect(attempts.map((n) => middle("look_first", n))).toEqual(attempts.map((n) => middle("transport", n)));
    expect([middle("never", 1), middle("next_vmid", 1), middle("replace", 9)]).toEqual([null, 0, 500]);
  });

  test("stay within a quarter of that, whatever the luck", () => {
    const policies = [...new Set(Object.values(POLICY))].filter((policy) => policy !== "never");
    const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(fc.constantFrom(...policies), fc.integer({ min: 0, max: 1_000 }), random, (policy, attempt, luck) => {
        const [delay = -1, base = -1] = [retryDelayMs(policy, attempt, luck) ?? -1, middle(policy, attempt) ?? -1];
        expect(delay).toBeGreaterThanOrEqual(Math.floor(base * 0.75));
        expect(delay).toBeLessThanOrEqual(Math.ceil(base * 1.25));
      }),
    );
  });
});
