import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Breaker } from "../../../shared/state/nodes.ts";
import { type BreakerEvent, nextBreaker, PROBE_MS } from "../../../workers/nodes/breaker.ts";

const FAILED = { type: "failed" } as const;
const ANSWERED = { type: "answered" } as const;

/** The state after events at given times. */
const play = (events: readonly (readonly [number, BreakerEvent])[], from: Breaker | null = null) =>
  events.reduce<Breaker | null>((state, [at, event]) => nextBreaker(state, event, at), from);

describe("a closed breaker", () => {
  test("opens at the third failure in a row", () => {
    expect(
      play([
        [0, FAILED],
        [10, FAILED],
      ]),
    ).toEqual({ state: "closed", failures: 2, since: 0 });
    expect(
      play([
        [0, FAILED],
        [10, FAILED],
        [20, FAILED],
      ]),
    ).toEqual({ state: "open", since: 0, until: 2_020, times: 1 });
  });

  test("forgets them all at an answer, and those of a minute ago", () => {
    expect(
      play([
        [0, FAILED],
        [10, FAILED],
        [20, ANSWERED],
      ]),
    ).toBeNull();
    expect(
      play([
        [0, FAILED],
        [10, FAILED],
        [20, ANSWERED],
        [30, FAILED],
      ]),
    ).toMatchObject({ failures: 1, since: 30 });
    expect(
      play([
        [0, FAILED],
        [10, FAILED],
        [60_001, FAILED],
      ]),
    ).toEqual({ state: "closed", failures: 1, since: 60_001 });
  });

  test("that is clean stays the same object, so that nothing is written", () => {
    expect(nextBreaker(null, ANSWERED, 0)).toBeNull();
    expect(nextBreaker(null, { type: "probe", probe: "a" }, 0)).toBeNull();
  });
});

describe("an open breaker", () => {
  const open = { state: "open", since: 0, until: 1_000, times: 1 } as const;
  const claim = (probe: string) => ({ type: "probe", probe }) as const;
  const probed = (probe: string, alive: boolean) => ({ type: "probed", probe, alive }) as const;

  test("lets one probe go, and not before its time", () => {
    expect(nextBreaker(open, claim("a"), 999)).toBe(open);
    const half = nextBreaker(open, claim("a"), 1_000);
    expect(half).toEqual({ state: "half_open", since: 0, until: 1_000 + PROBE_MS, times: 1, probe: "a" });
    expect(nextBreaker(half, claim("b"), 1_001)).toBe(half);
    // Its worker has died.
    expect(nextBreaker(half, claim("b"), 1_000 + PROBE_MS)).toMatchObject({ state: "half_open", probe: "b" });
  });

  test("closes at a good probe; a bad one makes the pause longer, up to half a minute", () => {
    const half = nextBreaker(open, claim("a"), 1_000);
    expect(nextBreaker(half, probed("a", true), 1_100)).toBeNull();
    expect(nextBreaker(half, probed("b", true), 1_100)).toBe(half);
    const pauses: number[] = [];
    for (let state: Breaker | null = open, now = 1_000; pauses.length < 7; ) {
      state = play(
        [
          [now, claim("a")],
          [now, probed("a", false)],
        ],
        state,
      );
      if (state?.state !== "open") throw new Error("it is not open");
      pauses.push(state.until - now);
      now = state.until;
    }
    expect(pauses).toEqual([4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000]);
  });

  test("heeds neither failures nor answers of other requests", () => {
    expect(nextBreaker(open, ANSWERED, 500)).toBe(open);
    expect(nextBreaker(open, FAILED, 500)).toBe(open);
  });
});

test("whatever comes: at most one probe holds it, and it opens only by failures", () => {
  const event = fc.oneof(
    fc.constant(FAILED),
    fc.constant(ANSWERED),
    fc.constantFrom("a", "b", "c").map((probe) => ({ type: "probe" as const, probe })),
    fc
      .tuple(fc.constantFrom("a", "b", "c"), fc.boolean())
      .map(([probe, alive]) => ({ type: "probed" as const, probe, alive })),
  );
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: 0, max: 20_000 }), event), { maxLength: 60 }), (steps) => {
      let state: Breaker | null = null;
      let now = 0;
      for (const [waited, one] of steps) {
        now += waited;
        const before: Breaker | null = state;
        state = nextBreaker(before, one, now);
        if (state === before) continue;
        if (before?.state === "half_open" && state?.state === "half_open")
          expect(now).toBeGreaterThanOrEqual(before.until);
        if (state?.state === "half_open") expect(one.type).toBe("probe");
        if (state?.state === "open") expect([FAILED, { ...one, alive: false }]).toContainEqual(one);
        if (state === null && before?.state !== "closed") expect(one).toMatchObject({ type: "probed", alive: true });
      }
    }),
  );
});
