import { expect, test } from "vitest";
import { FleetError, type FleetErrorCode, POLICY, retryDelayMs } from "../../../shared/errors.ts";
import { decide } from "../../../workers/run/decide.ts";

const at = (code: FleetErrorCode, attempts = 0, attemptsAllowed = 6) =>
  decide(new FleetError(code, "x"), { attempts, attemptsAllowed, random: 0.5, movable: true });

test("every code has one consequence, from its policy", () => {
  for (const [code, policy] of Object.entries(POLICY) as [FleetErrorCode, (typeof POLICY)[FleetErrorCode]][]) {
    const { next, ...rest } = at(code);
    if (code === "lock_lost" || code === "shutting_down") expect(next, code).toBe("yield");
    else if (code === "canceled") expect({ next, ...rest }).toEqual({ next: "end", status: "canceled" });
    else if (policy === "never") expect({ next, ...rest }, code).toEqual({ next: "end", status: "failed" });
    else {
      const expected = { next: policy === "replace" ? "replace" : "retry", delayMs: retryDelayMs(policy, 1, 0.5) };
      expect({ next, ...rest }, code).toEqual(expected);
    }
  }
});

test("a node whose breaker is open is tried again when its pause is over, not before", () => {
  const open = (retryAfterMs: number) =>
    decide(new FleetError("node_unreachable", "x", { facts: { retryAfterMs } }), {
      attempts: 0,
      attemptsAllowed: 6,
      random: 0.5,
      movable: true,
    });
  expect(open(20_000)).toEqual({ next: "retry", delayMs: 20_000 });
  expect(open(10)).toEqual({ next: "retry", delayMs: 1_000 });
});

test("what belongs to one node is not placed again", () => {
  const attempt = { attempts: 0, attemptsAllowed: 6, random: 0.5, movable: false };
  expect(decide(new FleetError("storage_full", "x"), attempt)).toEqual({ next: "retry", delayMs: 1_000 });
});

test("the last attempt ends it; a cut-short run is no attempt, however many there were", () => {
  expect(at("node_unreachable", 4)).toMatchObject({ next: "retry", delayMs: 15_000 });
  expect(at("node_unreachable", 5)).toEqual({ next: "end", status: "failed" });
  expect(at("storage_full", 5)).toEqual({ next: "end", status: "failed" });
  expect(at("lock_lost", 100)).toEqual({ next: "yield" });
  expect(at("canceled", 100)).toEqual({ next: "end", status: "canceled" });
});
