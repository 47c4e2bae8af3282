import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createFleet } from "../../../producers/index.ts";
import { NodeName, SnapshotId, TeamId, Vmid } from "../../../shared/ids.ts";
import { saveInventory } from "../../../shared/state/inventory.ts";
import { createSecretStore } from "../../../shared/state/secrets.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { createRig, type Rig, SECRET_KEY } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis();
});
afterAll(async () => server[Symbol.asyncDispose]());

const keysOf = async (rig: Rig) => (await rig.redis.keys(`${rig.prefix}:*`)).sort();
const secretsOf = (rig: Rig) => createSecretStore(rig.redis, rig.keys, [Buffer.from(SECRET_KEY, "hex")]);

test("a provision is recorded, and its job waits in place with nothing but ids", async () => {
  await using rig = createRig(server);
  const { id, sandboxId } = await rig.fleet.provision({ template: "base", metadata: { a: "b" }, ttlSeconds: 60 });
  expect(await rig.store.load(id)).toMatchObject({
    kind: "provision",
    team: "default",
    status: "queued",
    queue: "place",
    input: { template: "base", clone: "linked", metadata: { a: "b" } },
  });
  expect(await rig.store.loadSandbox(sandboxId)).toMatchObject({
    operation: id,
    team: "default",
    template: "base",
    state: "placing",
    metadata: { a: "b" },
    ttlSeconds: 60,
  });
  const job = await rig.queues.get("place").getJob(id);
  expect(job).toMatchObject({
    name: "provision",
    data: { operation: id, sandbox: sandboxId, team: "default" },
    opts: { priority: 1, attempts: 1_000_000 },
  });
});

test("batch work goes behind interactive work", async () => {
  await using rig = createRig(server);
  const { id } = await rig.fleet.provision({ template: 100, priority: "batch" });
  expect((await rig.queues.get("place").getJob(id))?.opts.priority).toBe(2);
});

test("an exec goes to its sandbox's node; one for a sandbox that is not up waits without a job", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const { id } = await rig.fleet.exec({ sandboxId, command: "ls" });
  expect(await rig.queues.get("exec-pve1").getJob(id)).toBeDefined();
  const { sandboxId: early } = await rig.fleet.provision({ template: "base" });
  const parked = await rig.fleet.exec({ sandboxId: early, command: "ls" });
  expect(await rig.store.load(parked.id)).toMatchObject({ parked: 1 });
  expect(await rig.queues.get("place").getJob(parked.id)).toBeUndefined();
});

test("a job that comes with its operation is the one that a Queue would have made", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const { id } = await rig.fleet.exec({ sandboxId, command: "ls" });
  const team = TeamId.parse("default");
  await rig.queues.add("exec-other", {
    id,
    kind: "exec",
    priority: 0,
    data: { operation: id, sandbox: sandboxId, team },
  });
  const made = async (queue: string) => {
    const base = `${rig.keys.prefix}:${queue}:`;
    const { opts = "", data = "", timestamp, ...job } = await rig.redis.hgetall(base + id);
    const events = await rig.redis.xrange(`${base}events`, "-", "+");
    return {
      job: { ...job, opts: JSON.parse(opts), data: JSON.parse(data) },
      isRecent: Date.now() - Number(timestamp) < 60_000,
      events: events.map(([, fields]) => fields),
      kept: await rig.redis.hget(`${base}meta`, "opts.maxLenEvents"),
      wait: await rig.redis.lrange(`${base}wait`, 0, -1),
      marker: await rig.redis.zrange(`${base}marker`, "0", "-1", "WITHSCORES"),
      count: await rig.redis.get(`${base}id`),
    };
  };
  await vi.waitFor(async () => expect(await made("exec-pve1")).toEqual(await made("exec-other")), { timeout: 30_000 });
});

describe("secrets", () => {
  test("env is sealed under a key of its own, and nowhere else", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const { id } = await rig.fleet.exec({ sandboxId, command: "ls", env: { TOKEN: "hunter2hunter2" } });
    expect(await secretsOf(rig).get(id)).toEqual({ env: { TOKEN: "hunter2hunter2" } });
    expect(await rig.redis.ttl(rig.keys.secret(id))).toBe(-1);
    expect((await rig.store.load(id))?.input).not.toHaveProperty("env");
    for (const key of await keysOf(rig)) {
      expect(String(await rig.redis.dumpBuffer(key))).not.toContain("hunter2");
    }
  });

  test("without a key nothing is stored", async () => {
    await using rig = createRig(server);
    const fleet = rig.client({ secretKey: undefined });
    await expect(fleet.provision({ template: "base", env: { A: "1" } })).rejects.toMatchObject({
      code: "not_configured",
      facts: { variables: ["FLEET_SECRET_KEY"] },
    });
    expect(await keysOf(rig)).toEqual([rig.keys.pulse]);
    await expect(fleet.provision({ template: "base", env: {} })).resolves.toBeDefined();
  });

  test("of a request that is refused or was there already, none stay", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running();
    const input = { sandboxId, command: "ls", env: { A: "1" } };
    const first = await rig.fleet.exec(input, { idempotencyKey: "k" });
    await rig.fleet.exec(input, { idempotencyKey: "k" });
    await expect(rig.fleet.exec({ ...input, env: { A: "2" } }, { idempotencyKey: "k" })).rejects.toMatchObject({
      code: "idempotency_conflict",
    });
    await expect(rig.fleet.exec({ ...input, sandboxId: "sbx_0000000000000000" })).rejects.toMatchObject({
      code: "sandbox_not_found",
    });
    expect((await keysOf(rig)).filter((key) => key.includes(":secret:"))).toEqual([rig.keys.secret(first.id)]);
  });
});

describe("idempotency", () => {
  test("the same key with the same input is the same operation, whatever the order of fields", async () => {
    await using rig = createRig(server);
    const options = { idempotencyKey: "deploy:42 / ü" };
    const first = await rig.fleet.provision({ template: "base", cores: 2 }, options);
    const again = await rig.client().provision({ cores: 2, template: "base" }, options);
    expect([again.id, again.sandboxId]).toEqual([first.id, first.sandboxId]);
    expect(await rig.queues.get("place").getJobCounts("prioritized")).toEqual({ prioritized: 1 });
    expect(await rig.fleet.sandboxes.list()).toHaveLength(1);
  });

  test("at the same moment too", async () => {
    await using rig = createRig(server);
    const clients = Array.from({ length: 5 }, () => rig.client());
    const handles = await Promise.all(
      clients.map((fleet) => fleet.provision({ template: "base" }, { idempotencyKey: "k" })),
    );
    expect(new Set(handles.map(({ id }) => id)).size).toBe(1);
  });

  test("the same key with other input is a conflict, of another kind too; another team's key is another", async () => {
    await using rig = createRig(server);
    const sandboxId = await rig.running({}, rig.client({ team: "red" }));
    const options = { idempotencyKey: "k" };
    const { id } = await rig.fleet.provision({ template: "base" }, options);
    const conflict = { code: "idempotency_conflict", facts: { operation: id } };
    await expect(rig.fleet.provision({ template: "other" }, options)).rejects.toMatchObject(conflict);
    await expect(rig.fleet.destroy({ sandboxId }, options)).rejects.toMatchObject(conflict);
    const red = await rig.client({ team: "red" }).provision({ template: "other" }, options);
    expect(red.id).not.toBe(id);
  });

  test("an empty key is refused", async () => {
    await using rig = createRig(server);
    await expect(rig.fleet.provision({ template: "base" }, { idempotencyKey: "" })).rejects.toMatchObject({
      code: "invalid_input",
      facts: { fields: ["idempotencyKey"] },
    });
  });
});

describe("input", () => {
  test("is checked before anything is stored, every field named", async () => {
    await using rig = createRig(server);
    const input = { template: "base", cores: 0, network: { ip: "10.0.0.300/24" } };
    await expect(rig.fleet.provision(input)).rejects.toMatchObject({
      code: "invalid_input",
      facts: { fields: ["cores", "network.ip"] },
    });
    expect(await keysOf(rig)).toEqual([rig.keys.pulse]);
    expect(await rig.connections()).toHaveLength(0);
  });

  test("cpuunits follow the cgroup version of the nodes in question", async () => {
    await using rig = createRig(server);
    const node = (name: string, cgroup: 1 | 2) => ({
      name: NodeName.parse(name),
      online: true,
      cores: 8,
      memoryBytes: 1,
      memoryUsedBytes: 0,
      cgroup,
      storages: [],
      foreignMemoryBytes: 0,
    });
    const sandboxId = await rig.running();
    await expect(rig.fleet.configure({ sandboxId, cpuunits: 200_000 })).resolves.toBeDefined();
    await saveInventory(rig.redis, rig.keys, {
      at: 0,
      version: "8.4.1",
      nodes: [node("pve1", 2), node("old", 1)],
      replicas: [],
    });
    const refused = { code: "invalid_input", facts: { fields: ["cpuunits"] } };
    await expect(rig.fleet.configure({ sandboxId, cpuunits: 200_000 })).rejects.toMatchObject(refused);
    await expect(rig.fleet.provision({ template: "base", node: "pve1", cpuunits: 200_000 })).rejects.toMatchObject(
      refused,
    );
    await expect(rig.fleet.provision({ template: "base", node: "old", cpuunits: 200_000 })).resolves.toBeDefined();
    await expect(rig.fleet.provision({ template: "base", cpuunits: 200_000 })).resolves.toBeDefined();
  });
});

test("a sandbox that has ended takes nothing but destroy", async () => {
  await using rig = createRig(server);
  const { id, sandboxId } = await rig.fleet.provision({ template: "base" });
  const writer = await rig.claim(id);
  await rig.store.end(writer, { status: "succeeded", result: null }, { sandbox: { state: "destroyed" } });
  await expect(rig.fleet.exec({ sandboxId, command: "ls" })).rejects.toMatchObject({ code: "sandbox_gone" });
  await expect(rig.fleet.destroy({ sandboxId })).resolves.toBeDefined();
});

test("of another team nothing is in reach", async () => {
  await using rig = createRig(server);
  const [red, blue] = [rig.client({ team: "red" }), rig.client({ team: "blue" })];
  const sandboxId = await rig.running({}, red);
  const operation = await red.exec({ sandboxId, command: "ls" }, { idempotencyKey: "k" });
  const snapshot = SnapshotId.parse("snap_0000000000000000");
  const kept = { id: snapshot, sandbox: sandboxId, team: TeamId.parse("red"), node: "pve1", name: "s1" };
  await rig.redis.hset(rig.keys.snapshot(snapshot), { ...kept, vmid: Vmid.parse(20_000), createdAt: 1 });

  const notFound = { code: "sandbox_not_found" };
  await expect(blue.sandboxes.get(sandboxId)).rejects.toMatchObject(notFound);
  await expect(blue.exec({ sandboxId, command: "ls" })).rejects.toMatchObject(notFound);
  await expect(blue.destroy({ sandboxId })).rejects.toMatchObject(notFound);
  await expect(blue.operation(operation.id)).rejects.toMatchObject({ code: "operation_unknown" });
  await expect(blue.provision({ template: snapshot })).rejects.toMatchObject({ code: "template_not_found" });
  expect(await blue.sandboxes.list()).toEqual([]);
  expect(await blue.sandboxes.list({ team: "red" })).toEqual([]);
  expect(() => blue.events({ team: "red" })).toThrow("invalid_input");

  await expect(red.sandboxes.get(sandboxId)).resolves.toMatchObject({ team: "red" });
  await expect(red.provision({ template: snapshot })).resolves.toMatchObject({ kind: "provision" });
  await expect(rig.fleet.sandboxes.get(sandboxId)).resolves.toMatchObject({ team: "red" });
  await expect(rig.fleet.operation(operation.id)).resolves.toMatchObject({ kind: "exec", sandboxId });
  const fromAll = await rig.fleet.exec({ sandboxId, command: "ls" });
  expect(await rig.store.load(fromAll.id)).toMatchObject({ team: "red" });
});

test("Redis that does not answer is an error in time, and close does not wait for it", async () => {
  await using fleet = createFleet({ redis: "redis://127.0.0.1:1", requestTimeoutMs: 1_000 });
  await expect(fleet.provision({ template: "base" })).rejects.toMatchObject({
    code: "redis_unavailable",
    facts: { reason: "ECONNREFUSED" },
  });
});

test("a connection of the caller's is used and left open", async () => {
  await using rig = createRig(server);
  const fleet = rig.client({ redis: rig.redis });
  await fleet.provision({ template: "base" });
  await fleet.close();
  expect(await rig.redis.ping()).toBe("PONG");
});

test("a connection that prefixes keys is refused, and what one refuses that does not wait is Redis's absence", async () => {
  const redis = new Redis("redis://127.0.0.1:1", { enableOfflineQueue: false, lazyConnect: true });
  redis.options.keyPrefix = "app:";
  expect(() => createFleet({ redis })).toThrow(/not_configured: redis: its keyPrefix/);
  redis.options.keyPrefix = "";
  await using fleet = createFleet({ redis });
  await expect(fleet.sandboxes.list()).rejects.toMatchObject({ code: "redis_unavailable" });
  redis.disconnect();
});
