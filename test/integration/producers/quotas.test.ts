/** Quotas of teams: what is refused, what waits, and that nothing counts too long, twice or never. */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import type { OperationId } from "../../../shared/ids.ts";
import { TeamId } from "../../../shared/ids.ts";
import { createQuotas } from "../../../shared/state/quotas.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { caught, createRig, type Rig } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

const RED = TeamId.parse("red");
const WAIT = { onQuota: "wait" } as const;
const quotasOf = (rig: Rig) => createQuotas(rig.redis, rig.keys);
const release = async (rig: Rig) => (await quotasOf(rig).admit(RED)).ready;
const exceeded = (facts: object) => ({ code: "quota_exceeded", facts: expect.objectContaining(facts) });

/** Two runs of red may be under way; what they are is up to the test. */
function createRed(rig: Rig) {
  const red = rig.client({ team: "red" });
  const provision = (options = {}) => red.provision({ template: "base" }, options);
  const exec = async (sandboxId: string, options = {}) => red.exec({ sandboxId, command: "true" }, options);
  const end = async (id: OperationId, gone = false) => {
    const writer = await rig.claim(id);
    const sandbox = gone ? { sandbox: { state: "failed" as const } } : {};
    return rig.store.end(writer, { status: "failed", error: new FleetError("canceled", "enough") }, sandbox);
  };
  return { red, provision, exec, end };
}

describe("over a quota", () => {
  test("provisions: those under way, however they end; the text has numbers and the way out", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { provisions: 2 });
    const { provision, end } = createRed(rig);
    const first = await provision();
    await provision();
    const error = await caught(provision());
    expect(error).toMatchObject(exceeded({ team: "red", quota: "provisions", limit: 2, used: 2, waiting: 0 }));
    expect(error).toMatchObject({ text: expect.stringMatching(/^team red has 2 of 2 provisions; .*onQuota "wait"$/) });
    await rig.client({ team: "blue" }).provision({ template: "base" });
    await end(first.id);
    await provision();
    expect(await rig.fleet.sandboxes.list({ team: "red" })).toHaveLength(3); // what was refused left nothing
  });

  test("sandboxes: those that live and those in the making, until they leave", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("*", { sandboxes: 2 });
    const { red, provision, end } = createRed(rig);
    const sandboxId = await rig.running({}, red);
    const making = await provision();
    await expect(provision()).rejects.toMatchObject(exceeded({ quota: "sandboxes", limit: 2, used: 2 }));
    await end(making.id, true);
    await provision();
    await expect(provision()).rejects.toMatchObject(exceeded({ quota: "sandboxes", used: 2 }));
    const destroy = await red.destroy({ sandboxId });
    await end(destroy.id, true);
    await provision();
  });

  test("execs: those of a sandbox that is not up yet included", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { execs: 2 });
    const { red, provision, exec, end } = createRed(rig);
    const sandboxId = await rig.running({}, red);
    const { id } = await exec(sandboxId);
    await exec((await provision()).sandboxId);
    // Whoever asks: the sandbox is red's.
    const asked = rig.fleet.exec({ sandboxId, command: "true" });
    await expect(asked).rejects.toMatchObject(exceeded({ team: "red", quota: "execs", limit: 2, used: 2 }));
    await end(id);
    await exec(sandboxId);
  });

  test("rate: what was accepted within a minute, and when there is room again", async () => {
    await using rig = createRig(server);
    const { red, exec } = createRed(rig);
    const sandboxId = await rig.running({}, red);
    await rig.fleet.quotas.set("red", { rate: 2 });
    await exec(sandboxId);
    await red.snapshot({ sandboxId });
    const error = await caught(exec(sandboxId));
    expect(error).toMatchObject(exceeded({ quota: "rate", limit: 2, used: 2 }));
    const { retryAfterMs } = error instanceof FleetError ? error.facts : {};
    expect(retryAfterMs).toBeGreaterThan(55_000);
    expect(retryAfterMs).toBeLessThanOrEqual(61_000);
    await age(rig, 59);
    await expect(exec(sandboxId)).rejects.toMatchObject(exceeded({ quota: "rate" }));
    await age(rig, 2);
    await exec(sandboxId);
  });

  test("what gives something back is never refused, and counts for nothing", async () => {
    await using rig = createRig(server);
    const { red, exec } = createRed(rig);
    const sandboxId = await rig.running({}, red);
    await rig.fleet.quotas.set("red", { sandboxes: 0, provisions: 0, execs: 0, rate: 0 });
    await expect(exec(sandboxId)).rejects.toMatchObject(exceeded({ quota: "execs", limit: 0 }));
    await expect(red.power({ sandboxId, action: "start" })).rejects.toMatchObject(exceeded({ quota: "rate" }));
    await red.hide({ sandboxId, name: "web" });
    await red.power({ sandboxId, action: "stop" });
    await red.destroy({ sandboxId });
    expect((await red.quotas.get("red")).used).toEqual({ sandboxes: 1, provisions: 0, execs: 0, rate: 0 });
  });

  test("the same request again counts once and is not refused", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { provisions: 1, rate: 1 });
    const { red, provision } = createRed(rig);
    const first = await provision({ idempotencyKey: "k" });
    expect((await provision({ idempotencyKey: "k" })).id).toBe(first.id);
    expect((await red.quotas.get("red")).used).toEqual({ sandboxes: 1, provisions: 1, execs: 0, rate: 1 });
  });
});

/** As if so many seconds had passed. */
async function age(rig: Rig, seconds: number): Promise<void> {
  const key = `${rig.prefix}:rate:red`;
  const counts = Object.entries(await rig.redis.hgetall(key));
  await rig.redis.del(key);
  for (const [second, count] of counts) await rig.redis.hset(key, String(Number(second) - seconds), count);
}

describe("waiting for room", () => {
  test("no job and a reason; then first come, first served as others end, fail and are canceled", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { provisions: 1, sandboxes: 3 });
    const { provision, end } = createRed(rig);
    const going = await provision();
    const waiting = [await provision(WAIT), await provision(WAIT), await provision(WAIT)];
    const [first, second, third] = waiting.map(({ id }) => id);
    expect((await waiting[0]?.status())?.waitingFor).toBe("quota provisions of team red: 1 of 1");
    for (const { id } of waiting) expect(await rig.queues.get("place").getJob(id)).toBeUndefined();
    expect((await rig.fleet.quotas.get("red")).used).toMatchObject({ provisions: 1, sandboxes: 1 });
    // One that came later may not pass them, even if it does not wait itself.
    expect(await end(going.id)).toEqual([first]);
    await expect(provision()).rejects.toMatchObject(exceeded({ waiting: 2 }));
    if (second === undefined || first === undefined) throw new Error("unreachable");
    await end(second, true); // canceled in the line
    expect(await end(first)).toEqual([third]);
    expect(await rig.store.load(third as OperationId)).toMatchObject({ parked: 0, queue: "place", priority: 1 });
    expect(await quotasOf(rig).waitingTeams()).toEqual([]);
  });

  test("a repeat is the one that waits", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { provisions: 0 });
    const { provision } = createRed(rig);
    const first = await provision({ ...WAIT, idempotencyKey: "k" });
    expect((await provision({ idempotencyKey: "k" })).id).toBe(first.id);
    expect(await rig.fleet.quotas.get("red")).toMatchObject({ used: { sandboxes: 0 }, waiting: 1 });
  });

  test("a raised limit, and one taken back", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { provisions: 0 });
    const { provision } = createRed(rig);
    const first = await provision(WAIT);
    const others = [await provision(WAIT), await provision(WAIT)];
    expect(await release(rig)).toEqual([]);
    await rig.fleet.quotas.set("red", { provisions: 1 });
    expect(await release(rig)).toEqual([first.id]);
    expect(await rig.fleet.quotas.remove("red")).toBe(true);
    expect(await quotasOf(rig).admit(RED)).toEqual({ admitted: 2, ready: [] });
    for (const one of others) expect((await one.status()).waitingFor).toBe("earlier provisions of its team");
  });

  test("the rate: those in line go before newcomers of any kind", async () => {
    await using rig = createRig(server);
    const { red, provision, exec } = createRed(rig);
    const sandboxId = await rig.running({}, red);
    await rig.fleet.quotas.set("red", { rate: 1 });
    await exec(sandboxId);
    const { id } = await provision(WAIT);
    await age(rig, 61);
    await expect(exec(sandboxId)).rejects.toMatchObject(exceeded({ quota: "rate", used: 0, waiting: 1 }));
    expect(await release(rig)).toEqual([id]);
    await age(rig, 61);
    await exec(sandboxId);
  });

  test("a change of a sandbox keeps its place among that sandbox's changes", async () => {
    await using rig = createRig(server);
    const { red, end } = createRed(rig);
    const sandboxId = await rig.running({}, red);
    await rig.fleet.quotas.set("red", { rate: 1 });
    const first = await red.snapshot({ sandboxId });
    const second = await red.snapshot({ sandboxId }, WAIT);
    expect(await end(first.id)).toEqual([]);
    await rig.fleet.quotas.remove("red");
    expect(await release(rig)).toEqual([second.id]);
    const third = await red.configure({ sandboxId, cores: 2 });
    expect((await third.status()).waitingFor).toBe("an earlier operation of this sandbox");
    expect(await end(second.id)).toEqual([third.id]);
  });

  test("a command that waits for its quota first, then for its sandbox", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("red", { execs: 0 });
    const { provision, exec, end } = createRed(rig);
    const { id, sandboxId } = await provision();
    const command = await exec(sandboxId, WAIT);
    await rig.fleet.quotas.set("red", { execs: 1 });
    expect(await release(rig)).toEqual([]);
    expect((await command.status()).waitingFor).toBe("an earlier operation of this sandbox");
    expect(await end(id, true)).toEqual([command.id]);
  });
});

test("whatever comes and ends in whatever order: never over a limit, none forgotten, each class in its order", async () => {
  await using rig = createRig(server);
  const { red, provision, exec, end } = createRed(rig);
  const sandboxId = await rig.running({}, red);
  await rig.fleet.quotas.set("red", { provisions: 2, sandboxes: 4, execs: 2 });
  const step = fc.record({
    what: fc.constantFrom("provision" as const, "exec" as const, "end" as const, "end" as const),
    wait: fc.boolean(),
    which: fc.nat(20),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const going: OperationId[] = [];
      const lines: Record<"provision" | "exec", OperationId[]> = { provision: [], exec: [] };
      /** Those at the heads of their lines that a quota let go. */
      const went = async () => {
        for (const line of Object.values(lines)) {
          const records = await Promise.all(line.map((id) => rig.store.load(id)));
          const left = records.filter((one) => one?.quota === undefined).map((one) => one?.id);
          expect(left).toEqual(line.slice(0, left.length));
          going.push(...line.splice(0, left.length));
        }
      };
      for (const { what, wait, which } of steps) {
        if (what === "end") {
          const [id] = going.splice(which % Math.max(1, going.length), 1);
          if (id !== undefined) await end(id, (await rig.store.load(id))?.kind === "provision");
          await went();
        } else {
          const handle = await (what === "exec"
            ? exec(sandboxId, wait ? WAIT : {})
            : provision(wait ? WAIT : {})
          ).catch(() => null);
          if (handle === null) continue;
          const waits = (await handle.status()).waitingFor?.startsWith("quota") === true;
          if (waits) lines[what].push(handle.id);
          else going.push(handle.id);
        }
        const { used, waiting } = await red.quotas.get("red");
        expect(used.provisions).toBeLessThanOrEqual(2);
        expect(used.execs).toBeLessThanOrEqual(2);
        expect(used.sandboxes).toBeLessThanOrEqual(4);
        expect(used.provisions + used.execs).toBe(going.length);
        expect(waiting).toBe(lines.provision.length + lines.exec.length);
      }
      for (let id = going.shift(); id !== undefined; id = going.shift()) {
        await end(id, (await rig.store.load(id))?.kind === "provision");
        await went();
      }
      expect([...lines.provision, ...lines.exec]).toEqual([]);
    }),
    { numRuns: 25 },
  );
  expect((await red.quotas.get("red")).used).toMatchObject({ provisions: 0, execs: 0, sandboxes: 1 });
  expect(await rig.redis.keys(`${rig.prefix}:flight:*`)).toEqual([]);
});

test("a record that somebody removed counts no longer", async () => {
  await using rig = createRig(server);
  await rig.fleet.quotas.set("red", { provisions: 1, sandboxes: 1 });
  const { provision } = createRed(rig);
  const { id, sandboxId } = await provision();
  const waits = await provision(WAIT);
  await rig.redis.del(rig.keys.operation(id), rig.keys.sandbox(sandboxId));
  expect(await quotasOf(rig).mend()).toBe(2);
  expect((await quotasOf(rig).admit(RED)).admitted).toBe(1);
  await rig.redis.del(rig.keys.operation(waits.id), rig.keys.sandbox(waits.sandboxId));
  await quotasOf(rig).mend();
  expect(await rig.redis.exists(rig.keys.teams)).toBe(0);
});

describe("limits", () => {
  test("a team's own go over those of every team, one by one; null is none", async () => {
    await using rig = createRig(server);
    const { quotas } = rig.fleet;
    await quotas.set("*", { sandboxes: 3, rate: 600 });
    expect(await quotas.set("red", { sandboxes: null })).toEqual({ sandboxes: null });
    expect(await quotas.set("red", { execs: 5 })).toEqual({ sandboxes: null, execs: 5 });
    expect((await quotas.get("red")).limits).toEqual({ execs: 5, rate: 600 });
    expect((await quotas.get("blue")).limits).toEqual({ sandboxes: 3, rate: 600 });
    expect(await quotas.list()).toEqual([
      { team: "*", limits: { sandboxes: 3, rate: 600 } },
      { team: "red", limits: { sandboxes: null, execs: 5 } },
    ]);
    expect(await quotas.remove("red")).toBe(true);
    expect(await quotas.remove("red")).toBe(false);
    expect((await quotas.get("red")).limits).toEqual({ sandboxes: 3, rate: 600 });
  });

  test("a team reads its own and sets none; what is no limit is told", async () => {
    await using rig = createRig(server);
    await rig.fleet.quotas.set("blue", { execs: 1 });
    await rig.fleet.quotas.set("*", { execs: 2 });
    const { quotas } = rig.client({ team: "red" });
    expect((await quotas.get("red")).limits).toEqual({ execs: 2 });
    expect((await quotas.list()).map(({ team }) => team)).toEqual(["*"]);
    for (const refused of [quotas.get("blue"), quotas.set("red", { execs: 9 }), quotas.remove("red")])
      await expect(refused).rejects.toMatchObject({ code: "forbidden" });
    const invalid = (fields: string[]) => ({ code: "invalid_input", facts: { fields } });
    await expect(rig.fleet.quotas.set("red", { execs: -1 })).rejects.toMatchObject(invalid(["execs"]));
    await expect(rig.fleet.quotas.set("no team", {})).rejects.toMatchObject(invalid(["team"]));
    await expect(rig.fleet.provision({ template: "base" }, { onQuota: "later" as "wait" })).rejects.toMatchObject(
      invalid(["onQuota"]),
    );
  });
});
