/** Live output as a producer sees it; the worker's side is played through the store. */
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import type { ExecHandle } from "../../../producers/index.ts";
import { FleetError } from "../../../shared/errors.ts";
import { createOperationStore, type Writer } from "../../../shared/state/operations.ts";
import type { OutputPiece } from "../../../shared/state/output.ts";
import { type RedisServer, startRedis } from "../../redis.ts";
import { all } from "../fleet/harness.ts";
import { caught, createRig, type Rig } from "./rig.ts";

let server: RedisServer;
beforeAll(async () => {
  server = await startRedis({ appendfsync: "always" });
});
afterAll(async () => server[Symbol.asyncDispose]());

const exited = { exitCode: 0, stdout: "", stderr: "", truncated: false, stdoutBytes: 0, stderrBytes: 0, durationMs: 2 };
const out = (text: string): OutputPiece => ({ stream: "stdout", text });
const err = (text: string): OutputPiece => ({ stream: "stderr", text });

/** An exec that runs: what its worker would write. */
async function begin(rig: Rig) {
  const sandboxId = await rig.running();
  const handle = await rig.fleet.exec({ sandboxId, command: "make", idempotent: true });
  return { handle, worker: await play(rig, handle) };
}

async function play(rig: Rig, { id }: ExecHandle) {
  const writer: Writer = await rig.claim(id);
  let end = 0;
  const toEntry = (pieces: OutputPiece[]) => {
    end += pieces.reduce((sum, { text }) => sum + Buffer.byteLength(text), 0);
    return { end, pieces };
  };
  return {
    print: (...pieces: OutputPiece[]) => rig.store.addOutput(writer, [toEntry(pieces)]),
    again: (entry: { end: number; pieces: OutputPiece[] }) => rig.store.addOutput(writer, [entry]),
    succeed: (result: object = {}, rest?: OutputPiece[]) =>
      rig.store.end(
        writer,
        { status: "succeeded", result: { ...exited, ...result } },
        { output: rest && [toEntry(rest)] },
      ),
    fail: (error: FleetError) => rig.store.end(writer, { status: "failed", error }),
  };
}

/** Resolves once somebody is told of new output. */
const listeners = (rig: Rig, count: number) =>
  vi.waitFor(
    async () => {
      const subscribed = (await rig.connections()).filter(({ command }) => command.startsWith("subscribe"));
      expect(subscribed).toHaveLength(count);
      return subscribed;
    },
    { interval: 5, timeout: 30_000 },
  );

test("pieces come as they are printed, in order, to every client; the end is the operation's", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  const here = handle.output();
  const there = await rig.client().operation(handle.id);
  if (there.kind !== "exec") throw new Error("unreachable");
  const elsewhere = all(there.output());
  const first = here.next();
  await listeners(rig, 2);
  expect(await worker.print(out("one\n"), err("two\n"))).toBe(2);
  expect([await first, await here.next()]).toEqual([
    { done: false, value: out("one\n") },
    { done: false, value: err("two\n") },
  ]);
  const third = here.next();
  await worker.print(out("thr"));
  expect(await third).toEqual({ done: false, value: out("thr") });
  const last = here.next();
  await worker.fail(new FleetError("exec_interrupted", "the worker died"));
  expect(await last).toEqual({ done: true, value: undefined });
  expect(await elsewhere).toEqual([out("one\n"), err("two\n"), out("thr")]);
  await expect(handle.result()).rejects.toMatchObject({ code: "exec_interrupted" });
  await listeners(rig, 0);
});

test("asked late it is all there, without a connection of its own; the rest came with the end", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  await worker.print(out("one\n"));
  await worker.succeed({ stdout: "one\ntwo\n" }, [err("oops\n"), out("two\n")]);
  for (let time = 0; time < 2; time++) {
    expect(await all(handle.output())).toEqual([out("one\n"), err("oops\n"), out("two\n")]);
  }
  expect(await rig.connections()).toHaveLength(1);
});

test("what was too short to be written is in the result", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  const watching = all(handle.output());
  await worker.succeed({ stdout: "done\n" });
  expect(await watching).toEqual([out("done\n")]);
  expect(await rig.redis.exists(rig.keys.output(handle.id))).toBe(0);
});

test("what a slow reader lost is told in place, in bytes, also where the stream itself is gone", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  const chunks = handle.output();
  await worker.print(out("first\n"));
  expect((await chunks.next()).value).toEqual(out("first\n"));
  for (let index = 0; index < 40; index++) await worker.print(out("ä".repeat(16_000)));
  const [gap, ...rest] = [(await chunks.next()).value, (await chunks.next()).value];
  expect(gap).toEqual({ stream: "gap", bytes: 7 * 32_000 });
  expect(rest).toEqual([out("ä".repeat(16_000))]);
  await chunks.return?.();
  expect(await rig.redis.xlen(rig.keys.output(handle.id))).toBe(33);
  await rig.redis.del(rig.keys.output(handle.id));
  await worker.succeed({}, []);
  expect(await all(handle.output())).toEqual([{ stream: "gap", bytes: 6 + 40 * 32_000 }]);
});

test("a command that is run again says so, and its earlier output is not mixed in", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  const chunks = handle.output();
  await worker.print(out("begun\n"));
  expect((await chunks.next()).value).toEqual(out("begun\n"));
  const successor = await play(rig, handle);
  expect(await worker.print(out("from the grave\n"))).toBe("refused");
  await successor.print(out("begun\n"));
  await successor.succeed({ stdout: "begun\nended\n" }, [out("ended\n")]);
  expect(await all(chunks)).toEqual([{ stream: "restarted" }, out("begun\n"), out("ended\n")]);
  expect(await all(handle.output())).toEqual([out("begun\n"), out("ended\n")]);
  expect(await successor.print(out("late\n"))).toBe("refused");
});

test("what is sent again after a lost reply is not printed twice", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  for (let time = 0; time < 2; time++) await worker.again({ end: 4, pieces: [out("one\n")] });
  await worker.again({ end: 8, pieces: [out("two\n")] });
  await worker.succeed({}, undefined);
  expect(await all(handle.output())).toEqual([out("one\n"), out("two\n")]);
});

test("cut connections and a restart of Redis lose nothing", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  const watching = all(handle.output());
  await listeners(rig, 1);
  await worker.print(out("one\n"));
  await rig.redis.call("CLIENT", "KILL", "TYPE", "pubsub");
  await worker.print(out("two\n"));
  await rig.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  await worker.print(out("three\n"));
  await server.kill("SIGKILL");
  const printed = worker.print(out("four\n"));
  await server.restart();
  await printed;
  await worker.succeed({}, [out("five\n")]);
  expect(await watching).toEqual(["one\n", "two\n", "three\n", "four\n", "five\n"].map(out));
});

test("60 outputs at once share one connection, which goes with the last of them", async () => {
  await using rig = createRig(server);
  const sandboxId = await rig.running();
  const handles = await Promise.all(
    Array.from({ length: 60 }, (_, index) => rig.fleet.exec({ sandboxId, command: `echo ${index}` })),
  );
  const watching = Promise.all(handles.map((handle) => all(handle.output())));
  const workers = await Promise.all(handles.map((handle) => play(rig, handle)));
  await listeners(rig, 1);
  await Promise.all(workers.map((worker, index) => worker.print(out(`${index}\n`))));
  await Promise.all(workers.map((worker) => worker.succeed({}, [])));
  expect(await watching).toEqual(handles.map((_, index) => [out(`${index}\n`)]));
  await vi.waitFor(async () => expect(await rig.connections()).toHaveLength(1), { interval: 5, timeout: 30_000 });
});

test("time, a signal, leaving the loop and close end the wait, each at once", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  await expect(all(handle.output({ timeoutMs: 30 }))).rejects.toMatchObject({
    code: "timeout",
    facts: { goesOn: true },
  });
  const controller = new AbortController();
  const aborted = caught(all(handle.output({ signal: controller.signal })));
  const left = handle.output();
  const pending = left.next();
  await listeners(rig, 1);
  controller.abort(new Error("enough"));
  expect(await aborted).toEqual(new Error("enough"));
  await left.return?.();
  expect(await pending).toEqual({ done: true, value: undefined });
  await listeners(rig, 0);
  await worker.print(out("one\n"));
  for await (const chunk of handle.output()) {
    expect(chunk).toEqual(out("one\n"));
    break;
  }
  const closed = caught(all(handle.output()));
  await listeners(rig, 1);
  await rig.fleet.close();
  expect(await closed).toMatchObject({ code: "shutting_down" });
  await vi.waitFor(async () => expect(await rig.connections()).toEqual([]), { interval: 5, timeout: 30_000 });
});

test("it expires with the record, counts towards the bound of what is kept, and goes with it", async () => {
  await using rig = createRig(server);
  const { handle, worker } = await begin(rig);
  for (let index = 0; index < 20; index++) await worker.print(out("x".repeat(30_000)));
  await worker.succeed({ stdout: "x" }, []);
  const ttl = await rig.redis.ttl(rig.keys.output(handle.id));
  expect(ttl).toBeGreaterThan(0);
  expect(ttl).toBe(await rig.redis.ttl(rig.keys.operation(handle.id)));
  const small = createOperationStore(rig.redis, rig.keys, { retentionSec: 60, retentionBytes: 600_000 });
  const next = await rig.fleet.exec({ sandboxId: handle.sandboxId, command: "true" });
  await small.end(await rig.claim(next.id), { status: "succeeded", result: exited });
  expect(await rig.redis.exists(rig.keys.operation(handle.id), rig.keys.output(handle.id))).toBe(0);
  await expect(all(handle.output())).rejects.toMatchObject({ code: "operation_unknown" });
});
