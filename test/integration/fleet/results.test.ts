/** A result is never missed: asked late, by another handle, from another process, after the workers have gone. */
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Bed, failure, provisionOne, startBed, until } from "./harness.ts";

let bed: Bed;
beforeAll(async () => {
  bed = await startBed({ pve: { nodes: 1 } });
});
afterAll(() => bed.close());

const PRODUCER = fileURLToPath(new URL("producer-process.ts", import.meta.url));
const exec = promisify(execFile);

async function askElsewhere(id: string) {
  const { stdout } = await exec(process.execPath, [PRODUCER, "result", id], { env: { ...process.env, ...bed.env } });
  return JSON.parse(stdout) as { result: unknown; ms: number };
}

test("after completion, here and from another process: at once, and the same", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const result = await handle.result({ timeoutMs: 60_000 });
  const begun = performance.now();
  expect(await handle.result()).toEqual(result);
  const late = await bed.client().operation(handle.id);
  expect(await late.result()).toEqual(result);
  expect(performance.now() - begun).toBeLessThan(500);
  const elsewhere = await askElsewhere(handle.id);
  expect(elsewhere.result).toEqual(result);
  expect(elsewhere.ms).toBeLessThan(500);
});

test("while it runs, from another process", async () => {
  const { sandboxId } = await provisionOne(bed.fleet);
  bed.pve.faults.request({ kind: "delay", ms: 700, method: "POST", path: "/snapshot$" });
  const handle = await bed.fleet.snapshot({ sandboxId, name: "awaited" });
  const elsewhere = await askElsewhere(handle.id);
  expect(elsewhere.result).toMatchObject({ name: "awaited" });
  expect(await handle.result()).toEqual(elsewhere.result);
});

test("a failure is as durable as a result", async () => {
  const handle = await bed.fleet.provision({ template: "nope" });
  const first = await failure(handle.result({ timeoutMs: 60_000 }), "template_not_found");
  const later = await failure((await bed.client().operation(handle.id)).result(), "template_not_found");
  expect(later).toMatchObject({ text: first.text, facts: first.facts });
});

test("without BullMQ's own jobs", async () => {
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const result = await handle.result({ timeoutMs: 60_000 });
  for (const queue of ["place", "node-pve1"]) await bed.workers?.context.queues.get(queue).clean(0, 1_000, "completed");
  const late = await bed.client().operation(handle.id);
  expect(await late.result()).toEqual(result);
});

test("after somebody obliterated BullMQ's queues: of what waited, of what ran, and late", async () => {
  bed.pve.faults.request({ kind: "delay", ms: 700, method: "POST", path: "/clone$", times: 6 });
  const handles = await Promise.all(Array.from({ length: 6 }, () => bed.fleet.provision({ template: "cmux-base" })));
  const results = Promise.all(handles.map((handle) => handle.result({ timeoutMs: 60_000 })));
  const queues = ["place", "node-pve1", "exec-pve1"].map((name) => bed.workers?.context.queues.get(name));
  await until(async () => (await queues[1]?.getActiveCount()) === 4, "as many as the node takes");
  const obliterate = () => Promise.all(queues.map((queue) => queue?.obliterate({ force: true })));
  await obliterate();
  expect(await Promise.all(queues.map((queue) => queue?.count()))).toEqual([0, 0, 0]);
  const ended = await results;
  expect(new Set(ended.map(({ sandboxId }) => sandboxId)).size).toBe(6);
  await obliterate();
  expect(await Promise.all(handles.map((handle) => handle.result()))).toEqual(ended);
});

test("a wait that is over leaves the operation alone", async () => {
  bed.pve.faults.request({ kind: "delay", ms: 400, method: "POST", path: "/clone$" });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const error = await failure(handle.result({ timeoutMs: 50 }), "timeout");
  expect(error.facts).toMatchObject({ goesOn: true });
  const stop = new AbortController();
  const waiting = handle.result({ signal: stop.signal });
  stop.abort(new Error("enough"));
  await expect(waiting).rejects.toThrow("enough");
  await handle.result({ timeoutMs: 60_000 });
});

test("an unknown operation is said to be unknown", async () => {
  await failure(bed.fleet.operation("op_0000000000000000"), "operation_unknown");
});
