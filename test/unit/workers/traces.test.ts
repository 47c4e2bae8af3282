import { ROOT_CONTEXT, SpanKind } from "@opentelemetry/api";
import { expect, test } from "vitest";
import { limitRate } from "../../../workers/traces.ts";

test("no more traces begin a second than are allowed, whatever comes", () => {
  let now = 0;
  const always = { shouldSample: () => ({ decision: 2 }), toString: () => "always" };
  const sampler = limitRate(always, 10, () => now);
  const sampled = (count: number) =>
    Array.from({ length: count }, () =>
      sampler.shouldSample(ROOT_CONTEXT, "0".repeat(32), "process exec-pve1", SpanKind.CONSUMER, {}, []),
    ).filter(({ decision }) => decision === 2).length;
  expect(sampled(100)).toBe(10);
  now += 500;
  expect(sampled(100)).toBe(5);
  now += 60_000;
  expect(sampled(100)).toBe(10);
  // At that pace none is left out.
  for (let at = 0; at < 100; at++) {
    now += 100;
    expect(sampled(1)).toBe(1);
  }
  const never = limitRate({ shouldSample: () => ({ decision: 0 }), toString: () => "never" }, 10, () => now);
  expect(never.shouldSample(ROOT_CONTEXT, "0".repeat(32), "process exec-pve1", SpanKind.CONSUMER, {}, [])).toEqual({
    decision: 0,
  });
});
