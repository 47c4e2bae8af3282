import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { FleetError } from "../../../shared/errors.ts";
import { closeRedis, connectRedis } from "../../../shared/redis/connect.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { caught, createRig, toProvisioned } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis({ appendfsync: "always" });
});
afterAll(async () => server[Symbol.asyncDispose]());

const exited = {
  exitCode: 0,
  stdout: "hi\n",
  stderr: "",
  truncated: false,
  stdoutBytes: 3,
  stderrBytes: 0,
  durationMs: 2,
};
const run = promisify(execFile);

test("a result arrives when the operation ends", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const result = handle.result();
  await rig.readers(1);
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(result).resolves.toEqual(toProvisioned(handle.id, handle.sandboxId));
});

test("who listens already when it asks is told the end itself; what is long it reads", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const ask = () => rig.fleet.exec({ sandboxId, command: "echo hi" });
  const listenerOf = (id: string) => rig.redis.hget(rig.keys.operation(id), "listener");
  const first = await ask();
  expect(await listenerOf(first.id)).toBeNull();
  const firstResult = first.result();
  await rig.readers(1);
  await rig.succeed(first.id, exited);
  await firstResult;

  const handles = [await ask(), await ask(), await ask()] as const;
  const listener = (await listenerOf(handles[0].id)) ?? "";
  const results = handles.map((handle) => handle.result());
  const heard: string[] = [];
  const ear = connectRedis(server.url);
  ear.on("message", (_channel, message) => void heard.push(message));
  await ear.subscribe(rig.keys.told(listener));
  const long = { ...exited, stdout: "x".repeat(20_000) };
  await rig.succeed(handles[0].id, exited);
  await rig.succeed(handles[1].id, long);
  expect(await Promise.all([results[0], results[1]])).toEqual([exited, long]);
  expect(heard.map((text) => JSON.parse(text)[0])).toEqual([handles[0].id]);
  // The record says nothing of an end yet, so no look can have found it.
  const told: unknown[] = JSON.parse(heard[0] ?? "");
  await rig.redis.publish(rig.keys.told(listener), JSON.stringify([handles[2].id, ...told.slice(1)]));
  expect(await results[2]).toEqual(exited);

  const last = await ask();
  await expect(last.result({ timeoutMs: 1 })).rejects.toMatchObject({ code: "timeout" }); // it listens, and knows of no end
  await rig.redis.publish(rig.keys.told(listener), "said by a newer version");
  await rig.succeed(last.id, exited);
  expect(await last.result()).toEqual(exited);
  await closeRedis(ear);
});

test("who listens already looks for an end only where one was heard before it waits", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const ask = () => rig.fleet.exec({ sandboxId, command: "echo hi" });
  const first = await ask();
  const firstResult = first.result();
  await rig.readers(1);
  await rig.succeed(first.id, exited);
  await firstResult;

  const [early, late] = [await ask(), await ask()];
  const ear = connectRedis(server.url);
  const heard = new Promise((resolve) => ear.once("message", resolve));
  await ear.subscribe(rig.keys.ends);
  await rig.succeed(early.id, exited);
  await heard;
  const before = performance.now();
  expect(await early.result()).toEqual(exited);
  expect(performance.now() - before).toBeLessThan(1_000); // by a look of its own, not by the one every 2 s
  await closeRedis(ear);

  // A look would find that it is gone.
  await rig.redis.del(rig.keys.operation(late.id));
  await expect(late.result({ timeoutMs: 100 })).rejects.toMatchObject({ code: "timeout" });
});

test("asked late, it is there at once, without a second connection", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(handle.result()).resolves.toMatchObject({ vmid: 20_000 });
  expect(await rig.connections()).toHaveLength(1);
});

test("another process gets it, late and while it waits", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const [late, early] = await Promise.all([1, 2].map(() => rig.fleet.exec({ sandboxId, command: "echo hi" })));
  if (!late || !early) throw new Error("unreachable");
  await rig.succeed(late.id, exited);
  const ask = (id: string) =>
    run(process.execPath, ["--input-type=module", "--eval", OTHER_PROCESS], {
      env: { ...process.env, REDIS_URL: server.urlFor("producer"), FLEET_PREFIX: rig.prefix, OPERATION: id },
      cwd: new URL("../../..", import.meta.url),
    });
  const waiting = ask(early.id);
  await rig.readers(1);
  await rig.succeed(early.id, { ...exited, exitCode: 3 });
  expect(JSON.parse((await waiting).stdout)).toEqual({ kind: "exec", result: { ...exited, exitCode: 3 } });
  expect(JSON.parse((await ask(late.id)).stdout)).toEqual({ kind: "exec", result: exited });
});

const OTHER_PROCESS = `
  import { createFleetFromEnv } from "./producers/index.ts";
  const fleet = createFleetFromEnv(process.env);
  const handle = await fleet.operation(process.env.OPERATION);
  console.log(JSON.stringify({ kind: handle.kind, result: await handle.result() }));
  await fleet.close();
`;

test("a failure is the operation's own error", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "none" });
  const outcome = caught(handle.result());
  await rig.fail(handle.id, new FleetError("template_not_found", "no template none", { facts: { template: "none" } }));
  expect(await outcome).toMatchObject({
    name: "FleetError",
    code: "template_not_found",
    text: "no template none",
    facts: { template: "none", operation: handle.id, sandbox: handle.sandboxId },
  });
});

test("a record that is gone is operation_unknown, for who asks and for who waits", async () => {
  await using rig = createRig(server);
  await expect(rig.fleet.operation("op_0000000000000000")).rejects.toMatchObject({ code: "operation_unknown" });
  const handle = await rig.fleet.provision({ template: "base" });
  const waiting = caught(handle.result());
  await rig.readers(1);
  await rig.redis.del(rig.keys.operation(handle.id));
  expect(await waiting).toMatchObject({ code: "operation_unknown" });
  await expect(handle.result()).rejects.toMatchObject({ code: "operation_unknown" });
  await expect(handle.status()).rejects.toMatchObject({ code: "operation_unknown" });
  await expect(handle.cancel()).rejects.toMatchObject({ code: "operation_unknown" });
});

test("a timeout is the wait's alone: the operation goes on and answers later", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  await expect(handle.result({ timeoutMs: 20 })).rejects.toMatchObject({ code: "timeout", facts: { goesOn: true } });
  expect(await handle.status()).toMatchObject({ status: "queued", aborting: false });
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(handle.result()).resolves.toMatchObject({ vmid: 20_000 });
});

test("no limit and a long one are none that is over at once; what is no time is refused", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const results = [Number.POSITIVE_INFINITY, 2 ** 40].map((timeoutMs) => handle.result({ timeoutMs }));
  for (const timeoutMs of [-1, Number.NaN]) {
    expect(await caught(handle.result({ timeoutMs }))).toMatchObject({
      code: "invalid_input",
      facts: { fields: ["timeoutMs"] },
    });
  }
  await rig.readers(1);
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  for (const result of results) await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("an abort signal ends the wait with its reason, before and during", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  await expect(handle.result({ signal: AbortSignal.abort(new Error("before")) })).rejects.toThrow("before");
  const controller = new AbortController();
  const waiting = caught(handle.result({ signal: controller.signal }));
  await rig.readers(1);
  controller.abort(new Error("during"));
  expect(await waiting).toEqual(new Error("during"));
});

test("a cut connection loses nothing", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const result = handle.result();
  const [reader] = await rig.readers(1);
  await rig.redis.client("KILL", "ID", Number(reader?.id));
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("all connections cut at once lose nothing", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const result = handle.result();
  await rig.readers(1);
  await rig.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("a restart of Redis loses nothing", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const result = handle.result();
  await rig.readers(1);
  await server.kill("SIGKILL");
  await server.restart();
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("an end whose event was lost is found by re-reading", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const result = handle.result();
  await rig.readers(1);
  const ended = JSON.stringify(toProvisioned(handle.id, handle.sandboxId));
  await rig.redis.hset(rig.keys.operation(handle.id), { status: "succeeded", result: ended });
  await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("an event of a later version does not stop the waiting", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const result = handle.result();
  await rig.readers(1);
  await rig.emit(1, "type", "sandbox.sang", "at", "1", "data", "{}");
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("1,000 waiting results share one connection, and get what is theirs", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const handles = await Promise.all(
    Array.from({ length: 1_000 }, (_, index) => rig.fleet.exec({ sandboxId, command: `echo ${index}` })),
  );
  const results = Promise.all(handles.map((handle) => handle.result()));
  const [reader] = await rig.readers(1);
  expect(await rig.connections()).toHaveLength(2);
  await Promise.all(handles.map(({ id }, index) => rig.succeed(id, { ...exited, stdout: String(index) })));
  expect((await results).map(({ stdout }) => stdout)).toEqual(handles.map((_, index) => String(index)));
  // So does who waits right after them.
  const next = await rig.fleet.exec({ sandboxId, command: "echo next" });
  const result = next.result();
  await rig.succeed(next.id, exited);
  await result;
  expect(await rig.readers(1)).toMatchObject([{ id: reader?.id }]);
});

test("two waiters of one operation both get it; one that gave up does not disturb the other", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const patient = [handle.result(), (await rig.fleet.operation(handle.id)).result()];
  await expect(handle.result({ timeoutMs: 10 })).rejects.toMatchObject({ code: "timeout" });
  await rig.readers(1);
  await rig.succeed(handle.id, toProvisioned(handle.id, handle.sandboxId));
  for (const result of patient) await expect(result).resolves.toMatchObject({ vmid: 20_000 });
});

test("close ends waits at once and leaves no connection", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  const waiting = caught(handle.result());
  await rig.readers(1);
  await rig.fleet.close();
  expect(await waiting).toMatchObject({ code: "shutting_down" });
  await vi.waitFor(async () => expect(await rig.connections()).toEqual([]), { interval: 5, timeout: 30_000 });
  await expect(handle.result()).rejects.toMatchObject({ code: "shutting_down" });
  await expect(rig.fleet.provision({ template: "base" })).rejects.toMatchObject({ code: "shutting_down" });
});

test("cancel sets the flag that runs obey; after the end it changes nothing", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  expect(await handle.cancel()).toBe(true);
  expect(await handle.status()).toMatchObject({ status: "queued", aborting: true });
  expect(await rig.store.load(handle.id)).toMatchObject({ abort: { code: "canceled" } });
  await rig.fail(handle.id, new FleetError("canceled", "canceled by its producer"));
  await expect(handle.result()).rejects.toMatchObject({ code: "canceled" });
  expect(await handle.cancel()).toBe(false);
});

test("a result that does not fit is an error, not a wrong value", async () => {
  await using rig = createRig(server);
  const handle = await rig.fleet.provision({ template: "base" });
  await rig.succeed(handle.id, { vmid: "many" });
  await expect(handle.result()).rejects.toMatchObject({ code: "internal" });
});
