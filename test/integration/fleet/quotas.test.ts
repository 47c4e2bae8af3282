/** Quotas with workers that heed them: what waits goes, ends in time, and can be canceled. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { all, type Bed, failure, provisionOne, run, startBed, until } from "./harness.ts";

const PATIENCE = { timeoutMs: 60_000 };
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

  test("a branch for which it has no room: exactly so many fail, with the quota's numbers, or wait for it", async () => {
    const grey = bed.client({ team: "grey" });
    const { sandboxId } = await provisionOne(grey);
    await bed.fleet.quotas.set("grey", { sandboxes: 3 });
    const batch = await grey.branch({ sandboxId, count: 4 }, { onQuota: "refuse" });
    const { counts } = await batch.result(PATIENCE);
    expect(counts).toMatchObject({ total: 4, succeeded: 2, failed: 2, failedByCode: { quota_exceeded: 2 } });
    const outcomes = await all(batch.results());
    const errors = outcomes.flatMap((one) => (one.ok ? [] : [one.error]));
    const facts = { team: "grey", quota: "sandboxes", limit: 3, used: 3 };
    expect(errors).toMatchObject([
      { code: "quota_exceeded", facts },
      { code: "quota_exceeded", facts },
    ]);
    const later = await grey.branch({ sandboxId, count: 1 });
    await until(async () => (await later.counts()).queued === 1, "one that waits");
    const [first, ...rest] = outcomes.flatMap((one) => (one.ok ? [one.sandboxId] : []));
    await run(grey, "destroy", { sandboxId: first ?? "" });
    for await (const one of later.results()) if (one.ok) rest.push(one.sandboxId);
    expect(rest).toHaveLength(2);
    await Promise.all([sandboxId, ...rest].map((id) => run(grey, "destroy", { sandboxId: id })));
    expect((await grey.quotas.get("grey")).used).toMatchObject({ sandboxes: 0 });
  });

  test("a sandbox whose time is up goes, whatever its team has used up", async () => {
    const blue = bed.client({ team: "blue" });
    const { sandboxId } = await provisionOne(blue, { ttlSeconds: 60 });
    await bed.fleet.quotas.set("blue", { sandboxes: 0, provisions: 0, execs: 0, rate: 0 });
    await bed.redis.zadd(bed.keys.expiries, 1, sandboxId);
    await until(async () => (await blue.sandboxes.get(sandboxId)).state === "destroyed", "the end of the sandbox");
  });
});
