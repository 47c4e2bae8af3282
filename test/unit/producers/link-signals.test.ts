import { getEventListeners, getMaxListeners, setMaxListeners } from "node:events";
import { expect, test } from "vitest";
import { linkSignals } from "../../../producers/link-signals.ts";

test("it aborts with the first of its sources, with one that was before, or by itself, and lets go of all", () => {
  const [one, other] = [new AbortController(), new AbortController()];
  setMaxListeners(10, one.signal); // as Node 20 begins
  const linked = linkSignals(one.signal, undefined, other.signal);
  expect(getMaxListeners(one.signal)).toBe(0);
  const free = linkSignals(one.signal);
  free[Symbol.dispose]();
  other.abort("enough");
  one.abort("late");
  expect(linked.signal).toMatchObject({ aborted: true, reason: "enough" });
  expect(free.signal.aborted).toBe(false);
  linked[Symbol.dispose]();
  expect(getEventListeners(one.signal, "abort")).toEqual([]);
  expect(linkSignals(one.signal).signal.reason).toBe("late");
  const own = linkSignals(new AbortController().signal);
  own.abort("mine");
  expect(own.signal.reason).toBe("mine");
});
