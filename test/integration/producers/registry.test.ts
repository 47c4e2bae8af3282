import { afterAll, beforeAll, expect, test } from "vitest";
import type { FleetError } from "../../../producers/index.ts";
import { NodeName } from "../../../shared/ids.ts";
import { saveInventory } from "../../../shared/state/inventory.ts";
import { createNodeStateStore } from "../../../shared/state/nodes.ts";
import { slotOf } from "../../../shared/state/slots.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { createRig } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

test("lists every living sandbox, oldest first, over many pages", async () => {
  await using rig = createRig(server);
  const handles = [];
  for (let count = 0; count < 450; count++) handles.push(await rig.fleet.provision({ template: "base" }));
  const gone = handles[7];
  if (!gone) throw new Error("unreachable");
  const writer = await rig.claim(gone.id);
  await rig.store.end(writer, { status: "succeeded", result: null }, { sandbox: { state: "destroyed" } });
  const listed = await rig.fleet.sandboxes.list();
  const living = handles.filter((handle) => handle !== gone).map(({ sandboxId }) => sandboxId);
  expect(new Set(listed.map(({ id }) => id))).toEqual(new Set(living));
  const times = listed.map(({ createdAt }) => createdAt);
  expect(times).toEqual([...times].sort((a, b) => a - b));
  await expect(rig.fleet.sandboxes.get(gone.sandboxId)).resolves.toMatchObject({ state: "destroyed" });
});

test("lists by state, metadata and team", async () => {
  await using rig = createRig(server);
  const red = rig.client({ team: "red" });
  const running = await rig.running({ metadata: { app: "web", tier: "1" } });
  const { sandboxId: placing } = await red.provision({ template: "base", metadata: { app: "web", tier: "2" } });
  const ids = async (filter: Parameters<typeof red.sandboxes.list>[0]) =>
    new Set((await rig.fleet.sandboxes.list(filter)).map(({ id }) => id));
  expect(await ids({})).toEqual(new Set([running, placing]));
  expect(await ids({ state: "running" })).toEqual(new Set([running]));
  expect(await ids({ state: ["running", "placing"] })).toEqual(new Set([running, placing]));
  expect(await ids({ metadata: { app: "web" } })).toEqual(new Set([running, placing]));
  expect(await ids({ metadata: { app: "web", tier: "2" } })).toEqual(new Set([placing]));
  expect(await ids({ team: "red" })).toEqual(new Set([placing]));
  expect(await ids({ team: "nobody" })).toEqual(new Set());
});

test("what can't be read is left out of lists and told of, and no node is said to be empty of it", async () => {
  await using rig = createRig(server);
  const { fleet, redis, keys } = rig;
  const told: Error[] = [];
  const onWarning = (warning: Error) => void told.push(warning);
  process.on("warning", onWarning);
  const [whole, newer, marred] = [await rig.running(), await rig.running(), await rig.running()];
  await redis.hset(keys.sandbox(newer), "state", "hibernating");
  await redis.hset(keys.sandbox(marred), "service:web", "{");
  const [batch, other] = [
    await fleet.batch({ template: "base", count: 1 }),
    await fleet.batch({ template: "base", count: 1 }),
  ];
  await redis.hset(keys.batch(other.id), "policy", "perhaps");
  const { id: key } = await fleet.keys.create({ name: "whole" });
  await redis.hset(keys.apiKeys, "0123456789ab", "{}");
  await redis.hset(keys.replicas, "sbx_other", "{}");

  const running = async (options = {}) =>
    (await fleet.sandboxes.list({ state: "running" }, options)).map(({ id }) => id);
  for (let turn = 0; turn < 2; turn++) expect(await running()).toEqual([whole]);
  expect((await fleet.batches.list()).map(({ id }) => id)).toEqual([batch.id]);
  expect((await fleet.keys.list()).map(({ id }) => id)).toEqual([key]);
  expect(await fleet.templates.list()).toEqual([]);
  await new Promise(setImmediate);
  process.off("warning", onWarning);
  const records = [
    `sandbox ${newer}`,
    `service:web of sandbox ${marred}`,
    `batch ${other.id}`,
    "API key 0123456789ab",
    "template sbx_other",
  ];
  expect(told.map(({ message }) => message.split(" in Redis ")[0])).toEqual(records);

  const heard: string[] = [];
  expect(await running({ onUnreadable: ({ code }: FleetError) => heard.push(code) })).toEqual([whole]);
  expect(heard).toEqual(["internal", "internal"]);
  const cordon = { by: "the test", at: 1 };
  await createNodeStateStore(redis, keys).setCordon("pve1", cordon); // a node that is known
  await expect(fleet.nodes.rest("pve1")).rejects.toMatchObject({ code: "internal", facts: { fields: ["state"] } });
});

test("what is no sandbox id is not found", async () => {
  await using rig = createRig(server);
  await expect(rig.fleet.sandboxes.get("*")).rejects.toMatchObject({ code: "sandbox_not_found" });
});

test("nodes come with what runs and waits on them", async () => {
  await using rig = createRig(server);
  expect(await rig.fleet.nodes.list()).toEqual([]);
  const name = NodeName.parse("pve1");
  const facts = { online: true, cores: 8, memoryBytes: 64, memoryUsedBytes: 8, cgroup: 2 as const };
  const node = { name, ...facts, storages: [], foreignMemoryBytes: 0 };
  await saveInventory(rig.redis, rig.keys, { at: 1, version: "8.4.1", nodes: [node], replicas: [] });
  const sandboxId = await rig.running();
  const { id } = await rig.fleet.power({ sandboxId, action: "stop" });
  await rig.fleet.exec({ sandboxId, command: "ls" });
  await rig.redis.hset(rig.keys.slot(slotOf.node(name)), id, Date.now()); // as a run that holds one
  expect(await rig.fleet.nodes.list()).toEqual([
    {
      ...node,
      cordon: undefined,
      breaker: "closed",
      settings: {},
      sandboxes: 0,
      slotsTaken: 1,
      queues: { node: { active: 0, waiting: 1, delayed: 0 }, exec: { active: 0, waiting: 1, delayed: 0 } },
    },
  ]);
});
