import { describe, expect, it } from "vitest";
import { Durations, FOUND, nextAskMs, type Plan } from "../../../workers/pve/task-schedule.ts";

/** The times of asking for a task that never ends. */
function asks(plan: Plan, count: number): number[] {
  const times: number[] = [];
  for (let at = nextAskMs(plan, 0, 0); times.length < count; at = nextAskMs(plan, times.length, at)) times.push(at);
  return times;
}

function learned(...durations: number[]): Durations {
  const known = new Durations();
  for (const ms of durations) known.learn("start", known.plan("start"), ms - 1, ms + 1);
  return known;
}

describe("when to ask", () => {
  it("starts after 50 ms with growing steps while nothing is known", () => {
    expect(asks(new Durations().plan("start"), 8)).toEqual([50, 65, 90, 130, 190, 290, 390, 490]);
  });

  it("is at once for a task that was found", () => {
    expect(asks(FOUND, 3)).toEqual([0, 15, 40]);
  });

  it("is when the end is due, once that is known", () => {
    const plan = learned(...Array.from({ length: 20 }, (_, i) => 1425 + 7.5 * i)).plan("start");
    const [first = 0, second = 0] = asks(plan, 2);
    expect(first).toBeGreaterThan(1435);
    expect(first).toBeLessThan(1470);
    expect(second - first).toBeGreaterThan(12);
    expect(second - first).toBeLessThan(25);
  });

  it("asks more densely the better the end is known, within bounds", () => {
    const gap = (...durations: number[]) => learned(...durations).plan("start").gapMs;
    const around = (spread: number) => Array.from({ length: 20 }, (_, i) => 2000 + (spread * i) / 20);
    expect(gap(...around(0))).toBe(10);
    expect(gap(...around(100))).toBeCloseTo(14, 0);
    expect(gap(...around(6000))).toBe(100);
  });

  it("is never more than 100 ms apart while young, and never more than 1 s at all", () => {
    for (const plan of [new Durations().plan("x"), learned(300, 310, 320, 330, 340).plan("start")]) {
      const times = asks(plan, 500);
      const steps = times.map((at, index) => ({ at, step: at - (times[index - 1] ?? 0) })).slice(1);
      expect(Math.max(...steps.filter(({ at }) => at < 5_000).map(({ step }) => step))).toBeLessThanOrEqual(100.001);
      expect(Math.max(...steps.map(({ step }) => step))).toBeLessThanOrEqual(1_000.001);
      expect(steps.at(-1)?.step).toBeGreaterThan(900);
    }
  });

  it("is not silent for long about a task that usually takes long", () => {
    const times = asks(learned(60_000, 60_000, 60_000, 60_000, 60_000).plan("start"), 10);
    expect(times[0]).toBe(2_000);
    expect(Math.max(...times.map((at, index) => at - (times[index - 1] ?? 0)))).toBe(2_000);
  });
});

describe("what is learned", () => {
  it("keeps the last 20", () => {
    const known = learned(...Array.from({ length: 20 }, () => 9_000), ...Array.from({ length: 20 }, () => 1_000));
    expect(known.plan("start").dueUntilMs).toBeCloseTo(1_000);
  });

  it("is a kind's own", () => {
    expect(learned(300).plan("stop")).toEqual(new Durations().plan("stop"));
  });

  it("is doubted when tasks are over by the first ask again and again, and dropped then", () => {
    const known = learned(1500, 1500, 1500, 1500, 1500, 1500);
    const first = known.plan("start").firstMs;
    for (const expected of [undefined, undefined]) {
      expect(known.plan("start").probeMs).toBe(expected);
      known.learn("start", known.plan("start"), 0, first);
    }
    const doubted = known.plan("start");
    expect(doubted.probeMs).toBeCloseTo(doubted.firstMs / 2);
    expect(asks(doubted, 2)).toEqual([doubted.probeMs, doubted.firstMs]);
    known.learn("start", doubted, 0, doubted.probeMs ?? 0);
    expect(known.plan("start")).toEqual(new Durations().plan("start"));
  });

  it("stands again when the early ask finds the task running", () => {
    const known = learned(1500, 1500, 1500, 1500, 1500, 1500);
    for (let i = 0; i < 2; i++) known.learn("start", known.plan("start"), 0, 1480);
    const doubted = known.plan("start");
    known.learn("start", doubted, doubted.probeMs ?? 0, doubted.firstMs);
    expect(known.plan("start").probeMs).toBeUndefined();
    expect(known.plan("start").firstMs).toBeGreaterThan(1400);
  });
});
