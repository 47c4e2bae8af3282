/** One batch of what `npm run test:kill` does: workers killed at a few of the boundaries, from the first to the last. */
import { expect, inject, test } from "vitest";
import { boundariesOf, strikeAt } from "./strike.ts";

const SAMPLE = 10;
const redisUrl = inject("redisUrl");

test("killed at boundaries all over a provision: each ends well, once", async () => {
  const all = await boundariesOf(redisUrl, "provision");
  const some = all.filter((_, at) => at % Math.ceil(all.length / SAMPLE) === 0);
  expect(await strikeAt(redisUrl, "kill", some)).toEqual([]);
});
