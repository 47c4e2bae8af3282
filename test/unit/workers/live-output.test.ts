/** What is held back for those who watch, before the first write tells whether there is anybody. */
import { expect, test } from "vitest";
import { OUTPUT_KEPT_BYTES, type OutputEntry } from "../../../shared/state/output.ts";
import { createLiveOutput } from "../../../workers/exec/live-output.ts";

const BURST = "x".repeat(32_768);
const TIMES = 128;

/** Listeners of each write, the last for all that follow. */
function watchedBy(...listeners: number[]) {
  const written: OutputEntry[] = [];
  const live = createLiveOutput(async (entries) => {
    written.push(...entries);
    return (listeners.length > 1 ? listeners.shift() : listeners[0]) ?? 0;
  });
  const burst = () => {
    for (let sent = 0; sent < TIMES; sent++) live.add("stdout", BURST);
  };
  const bytesOf = (entries: readonly OutputEntry[]) =>
    entries.flatMap(({ pieces }) => pieces).reduce((sum, { text }) => sum + text.length, 0);
  return { live, written, burst, bytesOf };
}

test("a command that begins with a burst: all of it, where somebody watches", async () => {
  const { live, written, burst, bytesOf } = watchedBy(1);
  burst();
  const rest = await live.close();
  expect(bytesOf([...written, ...rest])).toBe(TIMES * BURST.length);
});

test("the same after a silence, for who has come since the last write", async () => {
  const { live, written, burst, bytesOf } = watchedBy(0, 1);
  live.add("stdout", "up");
  await expect.poll(() => written.length, { timeout: 4_000 }).toBe(1);
  await new Promise((resolve) => setImmediate(resolve));
  burst();
  const rest = await live.close();
  expect(bytesOf([...written, ...rest])).toBe("up".length + TIMES * BURST.length);
});

test("where nobody watches, no more than is kept", async () => {
  const { live, written, burst, bytesOf } = watchedBy(0);
  burst();
  const rest = await live.close();
  expect(written).toHaveLength(1);
  expect(bytesOf(rest)).toBeLessThanOrEqual(OUTPUT_KEPT_BYTES);
  expect(rest.at(-1)?.end).toBe(TIMES * BURST.length);
});
