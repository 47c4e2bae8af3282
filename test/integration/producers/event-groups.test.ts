/** Consumers that share the events: each goes to one of them, at least once, whoever dies. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { ConsumeOptions, Fleet, FleetError, FleetEvent } from "../../../producers/index.ts";
import { createEventGroupStore } from "../../../shared/state/event-groups.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { caught, createRig } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis({ appendfsync: "always" });
});
afterAll(async () => server[Symbol.asyncDispose]());

interface Consumer extends AsyncDisposable {
  seen: FleetEvent[];
  deliveries: number[];
  ended: Promise<void>;
  /** Resolves once it was given that many. */
  has(count: number): Promise<FleetEvent[]>;
  stop(): void;
}

function start(
  fleet: Fleet,
  options: ConsumeOptions = {},
  onEvent: (event: FleetEvent) => unknown = () => {},
): Consumer {
  const stop = new AbortController();
  const seen: FleetEvent[] = [];
  const deliveries: number[] = [];
  const ended = fleet.consume(
    "billing",
    (event, about) => {
      seen.push(event);
      deliveries.push(about.deliveries);
      return onEvent(event);
    },
    { after: "0", signal: stop.signal, ...options },
  );
  ended.catch(() => {});
  return {
    seen,
    deliveries,
    ended,
    has: (count) =>
      vi.waitFor(
        () => {
          expect(seen.length).toBeGreaterThanOrEqual(count);
          return seen;
        },
        { interval: 5, timeout: 30_000 },
      ),
    stop: () => stop.abort(),
    async [Symbol.asyncDispose]() {
      stop.abort();
      await ended.catch(() => {});
    },
  };
}

const provision = async (fleet: Fleet, count: number) =>
  (await Promise.all(Array.from({ length: count }, () => fleet.provision({ template: "base" })))).map(({ id }) => id);
const groupOf = async (fleet: Fleet) => (await fleet.eventGroups.list())[0];
const operations = (events: readonly FleetEvent[]) => events.map(({ operation }) => operation);

test("each event goes to one of them, to each in order", async () => {
  await using rig = createRig(server);
  await using one = start(rig.fleet);
  await using two = start(rig.client());
  const ids = await provision(rig.fleet, 60);
  await vi.waitFor(() => expect(one.seen.length + two.seen.length).toBe(60), { interval: 5, timeout: 30_000 });
  expect(operations([...one.seen, ...two.seen]).sort()).toEqual([...ids].sort());
  for (const { seen } of [one, two]) {
    const cursors = seen.map(({ cursor }) => Number(cursor.split("-")[1]));
    expect(cursors).toEqual([...cursors].sort((a, b) => a - b));
    expect(seen.length).toBeGreaterThan(0);
  }
  await vi.waitFor(async () => expect(await groupOf(rig.fleet)).toMatchObject({ lag: 0, pending: 0 }), {
    timeout: 30_000,
  });
  expect((await groupOf(rig.fleet))?.consumers).toHaveLength(2);
});

test("a group begins where it is told, and goes on where it was", async () => {
  await using rig = createRig(server);
  const [first = ""] = await provision(rig.fleet, 1);
  {
    await using early = start(rig.fleet, { after: "0" });
    expect(operations(await early.has(1))).toEqual([first]);
  }
  const [second = ""] = await provision(rig.fleet, 1);
  await using again = start(rig.fleet, { after: "$" });
  expect(operations(await again.has(1))).toEqual([second]);
  const events = rig.fleet.events({ after: "0" });
  const cursor = (await events.next()).value?.cursor;
  await events.return?.();
  const from: FleetEvent[] = [];
  const stop = new AbortController();
  const takeOne = (event: FleetEvent) => {
    from.push(event);
    stop.abort();
  };
  await rig.fleet.consume("other", takeOne, { after: cursor, signal: stop.signal });
  expect(operations(from)).toEqual([second]);
});

test("what a consumer had in hand when it died goes to another", async () => {
  await using rig = createRig(server);
  const [id = ""] = await provision(rig.fleet, 1);
  const child = spawn(process.execPath, ["--input-type=module", "--eval", DOOMED], {
    env: { ...process.env, REDIS_URL: server.urlFor("producer"), FLEET_PREFIX: rig.prefix },
    cwd: new URL("../../..", import.meta.url),
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [line] = await once(createInterface({ input: child.stdout }), "line");
  expect(line).toBe(id);
  child.kill("SIGKILL");
  await using other = start(rig.fleet, { claimAfterMs: 300 });
  expect(operations(await other.has(1))).toEqual([id]);
  expect(other.deliveries).toEqual([2]);
});

const DOOMED = `
  import { createFleetFromEnv } from "./producers/index.ts";
  const fleet = createFleetFromEnv(process.env);
  await fleet.consume("billing", ({ operation }) => { console.log(operation); return new Promise(() => {}); },
    { after: "0", claimAfterMs: 300 });
`;

test("one that comes back by its name has it at once", async () => {
  await using rig = createRig(server);
  const [first, second] = await provision(rig.fleet, 2);
  const gone = rig.client();
  const held = start(gone, { consumer: "one" }, () => new Promise(() => {}));
  await held.has(1);
  await gone.close(); // its handler never ends, so nothing is said of the event
  await using back = start(rig.fleet, { consumer: "one" });
  expect(operations(await back.has(2))).toEqual([first, second]);
  expect(back.deliveries).toEqual([2, 1]);
});

test("a handler may take longer than others wait for the dead", async () => {
  await using rig = createRig(server);
  const done = Promise.withResolvers<void>();
  const [id = ""] = await provision(rig.fleet, 1);
  await using slow = start(rig.fleet, { claimAfterMs: 1_000 }, () => done.promise);
  await slow.has(1);
  await using other = start(rig.client(), { claimAfterMs: 1_000 });
  for (let count = 0; count < 2; count++) {
    await provision(rig.fleet, 1);
    await other.has(count + 1);
    await new Promise((resolve) => setTimeout(resolve, 1_100)); // one of its times, while the other one looks again and again
  }
  done.resolve();
  await vi.waitFor(async () => expect(await groupOf(rig.fleet)).toMatchObject({ pending: 0 }), { timeout: 30_000 });
  expect(operations(other.seen)).not.toContain(id);
  expect(slow.deliveries.every((count) => count === 1)).toBe(true);
});

describe("an event that can't be handled", () => {
  test("is tried again before the next, then put aside, told and shown", async () => {
    await using rig = createRig(server);
    const [bad, good] = await provision(rig.fleet, 2);
    const told: unknown[] = [];
    await using consumer = start(
      rig.fleet,
      { attempts: 2, onDead: (event, error) => void told.push(event.operation, error) },
      ({ operation }) => {
        if (operation === bad) throw new Error("no");
      },
    );
    expect(operations(await consumer.has(3))).toEqual([bad, bad, good]);
    expect(consumer.deliveries).toEqual([1, 2, 1]);
    expect(told).toEqual([bad, new Error("no")]);
    expect(await groupOf(rig.fleet)).toMatchObject({ name: "billing", dead: 1 });
    expect(await rig.fleet.eventGroups.dead("billing")).toMatchObject([{ event: { operation: bad }, deliveries: 2 }]);
  });

  test("is put aside also where its consumers die of it", async () => {
    await using rig = createRig(server);
    const [bad, good] = await provision(rig.fleet, 2);
    for (let count = 0; count < 2; count++) {
      const gone = rig.client();
      await start(gone, { consumer: "one" }, () => new Promise(() => {})).has(1);
      await gone.close();
    }
    const told: unknown[] = [];
    await using last = start(rig.fleet, {
      consumer: "one",
      attempts: 2,
      onDead: (event, error) => void told.push(event.operation, error),
    });
    expect(operations(await last.has(1))).toEqual([good]);
    expect(told).toEqual([bad, undefined]);
  });
});

describe("events that were removed", () => {
  test("before the group got them: told, and without a hearer the end", async () => {
    await using rig = createRig(server);
    await using first = start(rig.fleet);
    await provision(rig.fleet, 1);
    const [{ cursor = "" } = {}] = await first.has(1);
    await first[Symbol.asyncDispose]();
    const ids = await provision(rig.fleet, 3);
    await rig.redis.xtrim(rig.keys.events, "MAXLEN", 1);
    const oldest = (await rig.redis.xrange(rig.keys.events, "-", "+"))[0]?.[0];
    expect(await caught(start(rig.fleet).ended)).toMatchObject({
      code: "cursor_expired",
      facts: { group: "billing", after: cursor, oldest },
    });
    const missed: FleetError[] = [];
    await using next = start(rig.fleet, { onMissed: (error) => void missed.push(error) });
    expect(operations(await next.has(1))).toEqual([ids[2]]);
    expect(missed).toMatchObject([{ code: "cursor_expired", facts: { after: cursor } }]);
  });

  test("while somebody had one in hand", async () => {
    await using rig = createRig(server);
    const [, second] = await provision(rig.fleet, 2);
    const gone = rig.client();
    const held = start(gone, { consumer: "one" }, () => new Promise(() => {}));
    const [{ cursor = "" } = {}] = await held.has(1);
    await gone.close();
    await rig.redis.xdel(rig.keys.events, cursor);
    const missed: FleetError[] = [];
    await using next = start(rig.fleet, { consumer: "one", onMissed: (error) => void missed.push(error) });
    expect(operations(await next.has(1))).toEqual([second]);
    expect(missed).toMatchObject([{ code: "cursor_expired", facts: { after: cursor } }]);
    await vi.waitFor(async () => expect(await groupOf(rig.fleet)).toMatchObject({ pending: 0 }), { timeout: 30_000 });
  });
});

test("each team has its own groups and its own events, and others' leave nothing behind", async () => {
  await using rig = createRig(server);
  const [red, blue] = [rig.client({ team: "red" }), rig.client({ team: "blue" })];
  const [reds, blues] = [await provision(red, 3), await provision(blue, 2)];
  await rig.emit(450, "type", "sandbox.sang", "team", "green", "data", "{}");
  const last = await provision(red, 1);
  await using forRed = start(red);
  await using forBlue = start(blue);
  await using forAll = start(rig.fleet, { team: "blue", types: ["operation.accepted"] });
  expect(operations(await forRed.has(4))).toEqual([...reds, ...last]);
  expect(operations(await forBlue.has(2))).toEqual(blues);
  expect(operations(await forAll.has(2))).toEqual(blues);
  await vi.waitFor(
    async () => {
      const groups = await rig.fleet.eventGroups.list();
      expect(groups.map(({ name, lag, pending }) => [name, lag, pending]).sort()).toEqual([
        ["billing", 0, 0],
        ["blue/billing", 0, 0],
        ["red/billing", 0, 0],
      ]);
    },
    { timeout: 30_000 },
  );
  expect((await red.eventGroups.list()).map(({ name }) => name)).toEqual(["billing"]);
  expect(await caught(red.consume("blue/billing", () => {}))).toMatchObject({ code: "invalid_input" });
  expect(await caught(red.consume("x", () => {}, { team: "blue" }))).toMatchObject({ facts: { fields: ["team"] } });
});

test("a stop waits for the event in hand, and leaves what failed to others at once", async () => {
  await using rig = createRig(server);
  const ids = await provision(rig.fleet, 2);
  const done = Promise.withResolvers<void>();
  const polite = start(rig.fleet, {}, () => done.promise);
  await polite.has(1);
  polite.stop();
  done.resolve();
  await polite.ended;
  expect(await groupOf(rig.fleet)).toMatchObject({ pending: 0, lag: 1, consumers: [] });
  const failing = start(rig.fleet, {}, () => {
    throw new Error("no");
  });
  await failing.has(1);
  failing.stop();
  await failing.ended;
  await using next = start(rig.fleet);
  expect(operations(await next.has(1))).toEqual([ids[1]]);
  await vi.waitFor(async () => expect((await groupOf(rig.fleet))?.pending).toBe(0), { timeout: 30_000 });
});

test("a group that is removed ends its consumers; one that is none is told", async () => {
  await using rig = createRig(server);
  await using consumer = start(rig.fleet);
  await rig.readers(1);
  await rig.fleet.eventGroups.remove("billing");
  await provision(rig.fleet, 1); // else it looks after 2 s
  expect(await caught(consumer.ended)).toMatchObject({ code: "group_not_found", facts: { group: "billing" } });
  expect(await caught(rig.fleet.eventGroups.remove("billing"))).toMatchObject({ code: "group_not_found" });
  expect(await caught(rig.fleet.consume("no name", () => {}))).toMatchObject({ facts: { fields: ["group"] } });
  const bad = { claimAfterMs: 1, attempts: 0 };
  expect(await caught(rig.fleet.consume("x", () => {}, bad))).toMatchObject({ facts: { fields: Object.keys(bad) } });
});

test("a group that nobody used for long is forgotten with its dead events; one whose consumer waits for rare events is not", async () => {
  await using rig = createRig(server);
  const groups = createEventGroupStore((run) => run(rig.redis), rig.keys);
  const longAgo = () => rig.redis.hset(rig.keys.groupUses, "billing", 1_000, "left", 1_000, ":webhook:app", 1_000);
  for (const name of ["left", ":webhook:app"]) await groups.open(name, "$");
  await rig.redis.rpush(rig.keys.deadEvents("left"), "{}");
  {
    await using consumer = start(rig.fleet, { types: ["container.locked"] });
    await rig.readers(1);
    await longAgo();
    await provision(rig.fleet, 1); // else it looks after 2 s
    await vi.waitFor(
      async () => expect(Number(await rig.redis.hget(rig.keys.groupUses, "billing"))).toBeGreaterThan(1_000),
      { interval: 5, timeout: 30_000 },
    );
    expect(await groups.forgetUnused(86_400_000)).toEqual(["left"]);
    expect(consumer.seen).toEqual([]);
  }
  expect(await rig.redis.exists(rig.keys.deadEvents("left"))).toBe(0);
  expect((await groups.list()).map(({ name }) => name)).toEqual([":webhook:app", "billing"]);
  // One that an earlier version used has no date.
  await rig.redis.hdel(rig.keys.groupUses, "billing");
  expect(await groups.forgetUnused(86_400_000)).toEqual([]);
  await longAgo();
  expect(await groups.forgetUnused(86_400_000)).toEqual(["billing"]);
  expect(await rig.redis.hexists(rig.keys.groupUses, "billing")).toBe(0);
});

test("a restart of Redis loses nothing", async () => {
  await using rig = createRig(server);
  await using consumer = start(rig.fleet);
  const [first] = await provision(rig.fleet, 1);
  await consumer.has(1);
  await server.kill("SIGKILL");
  await server.restart();
  const [second] = await provision(rig.fleet, 1);
  await consumer.has(2);
  expect(operations(consumer.seen)).toEqual([first, second]);
});
