import { expect, inject, test } from "vitest";
import { raceForMembers } from "../../bench/race.ts";

test("10,000 claims at once from 4 processes: each member is one sandbox's", { timeout: 120_000 }, async () => {
  const race = await raceForMembers(inject("redisUrl"), { claims: 10_000, processes: 4 });
  expect(race).toMatchObject({ claims: 10_000, doubleClaims: 0 });
  expect(race.refused).toBeGreaterThan(0);
});
