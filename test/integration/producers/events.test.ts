import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { FleetEvent } from "../../../producers/index.ts";
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
  for (let count = 0; count < 501; count++) await rig.redis.xadd(rig.keys.events, "*", ...newer);
  await rig.redis.xadd(rig.keys.events, "*", "type", "sandbox.changed", "data", "no JSON");
  const { id } = await rig.fleet.provision({ template: "base" });
  const seen: FleetEvent[] = [];
  for await (const event of rig.fleet.events({ after: "0", follow: false })) seen.push(event);
  expect(typesOf(seen)).toHaveLength(4);
  expect(seen.at(-1)).toMatchObject({ type: "operation.accepted", operation: id });
});

test("filters by sandbox, team and type", async () => {
  await using rig = createRig(server);
  const red = rig.client({ team: "red" });
  await rig.running();
  const sandbox = await rig.running({}, red);
  await rig.running({}, red);
  const all = { after: "0" };
  expect((await take(red.events(all), 6)).every(({ team }) => team === "red")).toBe(true);
  expect((await take(rig.fleet.events({ ...all, team: "red" }), 6)).every(({ team }) => team === "red")).toBe(true);
  expect((await take(red.events({ ...all, sandbox }), 3)).every((event) => event.sandbox === sandbox)).toBe(true);
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
  await vi.waitFor(async () => expect(await rig.connections()).toHaveLength(1), { interval: 5 });
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
  await vi.waitFor(async () => expect(await rig.connections()).toEqual([]), { interval: 5 });
});

test("a cursor that is none is refused", async () => {
  await using rig = createRig(server);
  expect(await caught(rig.fleet.events({ after: "yesterday" }).next())).toMatchObject({
    code: "invalid_input",
    facts: { fields: ["after"] },
  });
});
