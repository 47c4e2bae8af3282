import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { FleetEvent } from "../../../producers/index.ts";
import { readEvents } from "../../../shared/state/events.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { caught, createRig } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

async function take(events: AsyncIterator<FleetEvent>, count: number): Promise<FleetEvent[]> {
  const taken: FleetEvent[] = [];
  while (taken.length < count) {
    const { value, done } = await events.next();
    if (done) break;
    taken.push(value);
  }
  return taken;
}
const typesOf = (events: readonly FleetEvent[]) => events.map(({ type }) => type);

test("every change and end, in order", async () => {
  await using rig = createRig(server);
  const events = rig.fleet.events({ after: "0" });
  const sandboxId = await rig.running();
  const seen = await take(events, 3);
  expect(typesOf(seen)).toEqual(["operation.accepted", "sandbox.changed", "operation.succeeded"]);
  expect(seen[1]).toMatchObject({ sandbox: sandboxId, data: { before: "placing", state: "running", node: "pve1" } });
});

test("without a cursor: what comes after the call, even when the first step comes late", async () => {
  await using rig = createRig(server);
  await rig.running();
  const events = rig.fleet.events();
  const { id } = await rig.fleet.provision({ template: "base" });
  expect(await take(events, 1)).toMatchObject([{ type: "operation.accepted", operation: id }]);
});

test("goes on from a cursor, in another client too", async () => {
  await using rig = createRig(server);
  for (let count = 0; count < 5; count++) await rig.running();
  const all = await take(rig.fleet.events({ after: "0" }), 15);
  const rest = await take(rig.client().events({ after: all[6]?.cursor }), 8);
  expect(rest).toEqual(all.slice(7));
});

test("more than one read holds", async () => {
  await using rig = createRig(server);
  await Promise.all(Array.from({ length: 700 }, () => rig.fleet.provision({ template: "base" })));
  const seen = await take(rig.fleet.events({ after: "0" }), 700);
  expect(new Set(seen.map(({ operation }) => operation)).size).toBe(700);
});

test("what a newer version writes to the stream is passed over, also where there is nothing else", async () => {
  await using rig = createRig(server);
  await rig.running();
  const newer = ["type", "sandbox.thawed", "at", "1", "sandbox", "sbx_0000000000000000", "team", "red", "data", "{}"];
  await rig.emit(501, ...newer);
  await rig.emit(1, "type", "sandbox.changed", "data", "no JSON");
  const { id } = await rig.fleet.provision({ template: "base" });
  const seen: FleetEvent[] = [];
  for await (const event of rig.fleet.events({ after: "0", follow: false })) seen.push(event);
  expect(typesOf(seen)).toHaveLength(4);
  expect(seen.at(-1)).toMatchObject({ type: "operation.accepted", operation: id });
});

test("filters by sandbox, operation, team and type", async () => {
  await using rig = createRig(server);
  const red = rig.client({ team: "red" });
  await rig.running();
  const sandbox = await rig.running({}, red);
  await rig.running({}, red);
  const all = { after: "0" };
  expect((await take(red.events(all), 6)).every(({ team }) => team === "red")).toBe(true);
  expect((await take(rig.fleet.events({ ...all, team: "red" }), 6)).every(({ team }) => team === "red")).toBe(true);
  expect((await take(red.events({ ...all, sandbox }), 3)).every((event) => event.sandbox === sandbox)).toBe(true);
  const { operation } = await red.sandboxes.get(sandbox);
  const own = await take(red.events({ ...all, operation }), 3);
  expect(own.map((event) => event.operation)).toEqual(Array(3).fill(operation));
  const types = ["operation.succeeded"] as const;
  expect(typesOf(await take(rig.fleet.events({ ...all, types }), 3))).toEqual(Array(3).fill("operation.succeeded"));
});

test("a cut connection passes over nothing and repeats nothing", async () => {
  await using rig = createRig(server);
  const events = rig.fleet.events();
  const ids: string[] = [];
  for (let count = 0; count < 5; count++) {
    const next = events.next();
    const [reader] = await rig.readers(1);
    await rig.redis.client("KILL", "ID", Number(reader?.id));
    const { id } = await rig.fleet.provision({ template: "base" });
    ids.push(id);
    expect((await next).value).toMatchObject({ operation: id });
  }
  expect(new Set(ids).size).toBe(5);
});

test("a server that changes its role breaks a step off, and it goes on", async () => {
  await using rig = createRig(server);
  const next = rig.fleet.events().next();
  const [reader] = await rig.readers(1);
  // As a master does that becomes a replica.
  const breakOff = async () => rig.redis.client("UNBLOCK", Number(reader?.id), "ERROR");
  await vi.waitFor(async () => expect(await breakOff()).toBe(1), { interval: 5, timeout: 30_000 });
  const { id } = await rig.fleet.provision({ template: "base" });
  expect((await next).value).toMatchObject({ operation: id });
});

test.each([
  ["return()", async (events: AsyncIterator<FleetEvent>) => void (await events.return?.())],
  ["its signal", async (_: AsyncIterator<FleetEvent>, stop: AbortController) => stop.abort()],
] as const)("%s ends a step that waits, and the connection", async (_, end) => {
  await using rig = createRig(server);
  const stop = new AbortController();
  const events = rig.fleet.events({ signal: stop.signal });
  const step = events.next();
  await rig.readers(1);
  await end(events, stop);
  expect(await step).toEqual({ value: undefined, done: true });
  await rig.readers(0);
  await vi.waitFor(async () => expect(await rig.connections()).toHaveLength(1), { interval: 5, timeout: 30_000 });
});

test("breaking out of the loop and closing the client end it too", async () => {
  await using rig = createRig(server);
  await rig.running();
  for await (const event of rig.fleet.events({ after: "0" })) {
    expect(event.type).toBe("operation.accepted");
    break;
  }
  const step = rig.fleet.events().next();
  await rig.readers(1);
  await rig.fleet.close();
  expect(await step).toEqual({ value: undefined, done: true });
  await vi.waitFor(async () => expect(await rig.connections()).toEqual([]), { interval: 5, timeout: 30_000 });
});

test("a cursor that is none is refused, as is a type, and a client that was closed", async () => {
  await using rig = createRig(server);
  const ask = async (options: object) => rig.fleet.events(options).next();
  const refused = (field: string) => ({ code: "invalid_input", facts: { fields: [field] } });
  expect(await caught(ask({ after: "yesterday" }))).toMatchObject(refused("after"));
  expect(await caught(ask({ types: ["operation.sang"] }))).toMatchObject(refused("types.0"));
  expect(await caught(rig.fleet.consume("g", () => {}, { types: "operation.failed" } as object))).toMatchObject(
    refused("types"),
  );
  await rig.fleet.close();
  expect(await caught(ask({ after: "0" }))).toMatchObject({ code: "shutting_down" });
});

describe("events that are gone", () => {
  const isTold = (step: Promise<unknown>, facts: Record<string, unknown>) =>
    expect(caught(step)).resolves.toMatchObject({ code: "cursor_expired", facts });

  test("a cursor before what is kept is told, with what is; the last one that was seen is none", async () => {
    await using rig = createRig(server);
    for (let count = 0; count < 3; count++) await rig.running();
    const all = await take(rig.fleet.events({ after: "0" }), 9);
    await rig.redis.xtrim(rig.keys.events, "MAXLEN", 5);
    const cursorOf = (index: number) => all[index]?.cursor ?? "";
    const facts = { after: cursorOf(2), oldest: cursorOf(4), resumeAfter: "0" };
    await isTold(rig.fleet.events({ after: cursorOf(2) }).next(), facts);
    await isTold(rig.fleet.events({ after: cursorOf(2), follow: false }).next(), facts);
    expect(await take(rig.fleet.events({ after: cursorOf(3) }), 5)).toEqual(all.slice(4));
    expect(await take(rig.fleet.events({ after: "0" }), 5)).toEqual(all.slice(4));
  });

  test("a follower that is slower than the trimming is told what it has not seen", async () => {
    await using rig = createRig(server);
    const events = rig.fleet.events({ after: "0" });
    await rig.emit(600, "type", "sandbox.sang", "data", "{}");
    const { id } = await rig.fleet.provision({ template: "base" });
    await rig.emit(1, "type", "sandbox.sang", "data", "{}");
    expect(await take(events, 1)).toMatchObject([{ operation: id }]);
    await rig.running();
    await rig.redis.xtrim(rig.keys.events, "MAXLEN", 1);
    await isTold(events.next(), { resumeAfter: "0" });
  });

  test("a stream that begins anew is told to who follows, also before it has got as far, and to who comes with its cursor", async () => {
    await using rig = createRig(server);
    for (let count = 0; count < 3; count++) await rig.running();
    const after = (await take(rig.fleet.events({ after: "0" }), 9)).at(-1)?.cursor ?? "";
    const facts = { after, resumeAfter: "0" };
    const told = isTold(rig.fleet.events({ after }).next(), facts);
    await rig.readers(1);
    await rig.redis.del(rig.keys.events);
    await isTold(rig.fleet.events({ after }).next(), facts);
    await isTold(readEvents(rig.redis, rig.keys, after, 1), facts);
    // The same number of events again.
    for (let count = 0; count < 3; count++) await rig.running();
    await told;
    await isTold(rig.fleet.events({ after }).next(), facts);
  });

  test("a Redis that came back without its newest: who had seen them goes on from where it stands", async () => {
    await using rig = createRig(server);
    for (let count = 0; count < 2; count++) await rig.running();
    const all = await take(rig.fleet.events({ after: "0" }), 6);
    const [kept, lost] = [all[3]?.cursor ?? "", all[5]?.cursor ?? ""];
    const entries = await rig.redis.xrange(rig.keys.events, "-", kept);
    await rig.redis.del(rig.keys.events);
    for (const [id, fields] of entries) await rig.redis.xadd(rig.keys.events, id, ...fields);
    await isTold(rig.fleet.events({ after: lost }).next(), { after: lost, resumeAfter: kept });
    await rig.running();
    const rest = await take(rig.fleet.events({ after: kept }), 3);
    expect(typesOf(rest)).toEqual(["operation.accepted", "sandbox.changed", "operation.succeeded"]);
  });

  test("an emptied stream goes on", async () => {
    await using rig = createRig(server);
    await rig.running();
    const events = rig.fleet.events({ after: "0" });
    expect(await take(events, 3)).toHaveLength(3);
    await rig.redis.xtrim(rig.keys.events, "MAXLEN", 0);
    await Promise.all(Array.from({ length: 20 }, () => rig.fleet.provision({ template: "base" })));
    expect(await take(rig.fleet.events({ after: "0" }), 20)).toHaveLength(20);
    await isTold(events.next(), { resumeAfter: "0" });
  });
});
