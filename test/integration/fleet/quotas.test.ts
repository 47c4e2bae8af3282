/** Quotas with workers that heed them: what waits goes, ends in time, and can be canceled. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Bed, failure, provisionOne, run, startBed, until } from "./harness.ts";

const PATIENCE = { timeoutMs: 20_000 };
const WAIT = { onQuota: "wait" } as const;

let bed: Bed;
beforeAll(async () => {
  bed = await startBed();
});
afterAll(() => bed.close());

// A team each.
describe.concurrent("a team", () => {
  test("five provisions, of which two may be under way; one is canceled in the line", async () => {
    await bed.fleet.quotas.set("red", { provisions: 2 });
    const red = bed.client({ team: "red" });
    const handles = await Promise.all([1, 2, 3, 4, 5].map(() => red.provision({ template: "cmux-base" }, WAIT)));
    const waiting = await Promise.all(handles.map(async (one) => (await one.status()).waitingFor?.startsWith("quota")));
    const last = handles[waiting.lastIndexOf(true)];
    expect(waiting.filter(Boolean)).toHaveLength(3);
    expect(await last?.cancel()).toBe(true);
    const ended = await Promise.allSettled(handles.map((one) => one.result(PATIENCE)));
    const made = ended.flatMap((one) => (one.status === "fulfilled" ? [one.value.sandboxId] : []));
    expect(made).toHaveLength(4);
    expect((await red.quotas.get("red")).used).toMatchObject({ sandboxes: 4, provisions: 0 });
    await Promise.all(made.map((sandboxId) => run(red, "destroy", { sandboxId })));
    expect((await red.quotas.get("red")).used).toMatchObject({ sandboxes: 0 });
  });

  test("a raised limit lets those go that wait; a command waits no longer than its own time limit", async () => {
    const green = bed.client({ team: "green" });
    const { sandboxId } = await provisionOne(green);
    await bed.fleet.quotas.set("green", { execs: 0 });
    const short = await green.exec({ sandboxId, command: "true", timeoutMs: 50 }, WAIT);
    const long = await green.exec({ sandboxId, command: "echo out" }, WAIT);
    const error = await failure(short.result(PATIENCE), "quota_exceeded");
    expect(error).toMatchObject({ text: "no room within 50 ms (quota execs of team green: 0 of 0)" });
    await bed.fleet.quotas.set("green", { execs: 1 });
    expect(await long.result(PATIENCE)).toMatchObject({ stdout: "out\n" });
    await run(green, "destroy", { sandboxId });
  });

  test("a sandbox whose time is up goes, whatever its team has used up", async () => {
    const blue = bed.client({ team: "blue" });
    const { sandboxId } = await provisionOne(blue, { ttlSeconds: 60 });
    await bed.fleet.quotas.set("blue", { sandboxes: 0, provisions: 0, execs: 0, rate: 0 });
    await bed.redis.zadd(bed.keys.expiries, 1, sandboxId);
    await until(async () => (await blue.sandboxes.get(sandboxId)).state === "destroyed", "the end of the sandbox");
  });
});
