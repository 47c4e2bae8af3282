/** Traces: one from a producer's call through the queues to PVE's task, over two processes. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { context, propagation, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { InMemorySpanExporter, SimpleSpanProcessor, TracerProvider } from "@opentelemetry/sdk-trace";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type CollectedSpan, type Collector, startCollector } from "../../otlp-collector.ts";
import { type Bed, failure, run, startBed } from "../fleet/harness.ts";
import type { WorkerProcess } from "../fleet/worker-process.ts";

let bed: Bed;
let collector: Collector;
let worker: WorkerProcess;
/** What this process, the producer, has ended. */
const own = new InMemorySpanExporter();

beforeAll(async () => {
  collector = await startCollector();
  bed = await startBed({ pve: { nodes: 1 }, workers: "none" });
  worker = await bed.startProcess({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url });
  context.setGlobalContextManager(new AsyncLocalStorageContextManager());
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  trace.setGlobalTracerProvider(new TracerProvider({ spanProcessors: [new SimpleSpanProcessor({ exporter: own })] }));
});
afterAll(async () => {
  for (const one of [context, propagation, trace]) one.disable();
  await bed?.close();
  await collector?.[Symbol.asyncDispose]();
});

test("one trace from the call to PVE's task, for what waits for its turn as well; no text of a command is in it", async () => {
  const backend = trace.getTracer("backend");
  const asked = await backend.startActiveSpan("request", async (request) => {
    const provision = await bed.fleet.provision({ template: "cmux-base", setup: ["true planted-setup"] });
    const { sandboxId } = provision;
    // Waits for the provision, and gets its job from the worker.
    const snapshot = await bed.fleet.snapshot({ sandboxId, name: "s1" });
    await snapshot.result({ timeoutMs: 60_000 });
    const exec = await bed.fleet.exec({ sandboxId, command: "exit 3 # planted-command", env: { A: "planted-env" } });
    await exec.result({ timeoutMs: 60_000 });
    request.end();
    return { id: request.spanContext().traceId, sandboxId, provision, snapshot, exec };
  });
  // Nobody's trace: its runs still share one.
  const lost = await context.with(trace.deleteSpan(context.active()), () =>
    bed.fleet.provision({ template: "cmux-base", setup: ["exit 9"] }),
  );
  await failure(lost.result({ timeoutMs: 60_000 }), "setup_failed");
  const batch = await backend.startActiveSpan("bulk", async (bulk) => {
    const { id } = await bed.fleet
      .batch({ count: 2, template: "cmux-base" })
      .then((all) => all.result().then(() => all));
    bulk.end();
    return { id, trace: bulk.spanContext().traceId };
  });
  await run(bed.fleet, "destroy", { sandboxId: asked.sandboxId });
  await worker.end("SIGTERM"); // sends what it has

  const spans = [...own.getFinishedSpans().map(toCollected), ...collector.spans()];
  const inTrace = spans.filter((span) => span.trace === asked.id);
  const byId = new Map(inTrace.map((span) => [span.id, span]));
  const pathOf = (span: CollectedSpan | undefined): string[] =>
    span === undefined ? [] : [...pathOf(byId.get(span.parent)), span.name];
  const paths = inTrace.map((span) => pathOf(span).join(" > "));
  for (const path of [
    "request > fleet.provision > process place",
    "request > fleet.provision > process node-pve1 > slot",
    "request > fleet.provision > process node-pve1 > clone > POST /nodes/{node}/lxc/{vmid}/clone",
    "request > fleet.provision > process node-pve1 > clone > task vzclone",
    "request > fleet.provision > process node-pve1 > start > task vzstart",
    "request > fleet.provision > process exec-pve1 > setup",
    "request > fleet.snapshot > process node-pve1 > snapshot > task vzsnapshot",
    "request > fleet.exec > process exec-pve1 > command",
  ])
    expect(paths).toContain(path);
  const clone = inTrace.find(({ name }) => name === "task vzclone");
  expect(clone?.attributes["pve.upid"]).toMatch(/^UPID:pve1:.*:vzclone:/);
  const process = inTrace.find(
    (span) => span.name === "process node-pve1" && byId.get(span.parent)?.name === "fleet.provision",
  );
  expect(process?.attributes).toMatchObject({
    "fleet.operation": asked.provision.id,
    "fleet.kind": "provision",
    "fleet.sandbox": asked.sandboxId,
    "fleet.team": "default",
  });
  const ofLost = spans.filter(({ attributes }) => attributes["fleet.operation"] === lost.id);
  expect(ofLost.map(({ name }) => name).sort()).toEqual([
    "fleet.provision",
    "process exec-pve1",
    "process node-pve1",
    "process place",
  ]);
  expect(new Set(ofLost.map((span) => span.trace)).size).toBe(1);
  expect(ofLost.find(({ name }) => name === "process exec-pve1")?.attributes["fleet.code"]).toBe("setup_failed");
  expect(spans.some(({ name, attributes }) => name === "task vzdestroy" && attributes["pve.upid"] !== "")).toBe(true);
  // Nothing of BullMQ's own looking for jobs, nor of the watcher's asking for all.
  expect(spans.filter(({ name }) => /getNextJob|tasks.\{upid\}/.test(name))).toEqual([]);
  // An item's trace is its own, and leads back to the call that brought it about.
  const call = spans.find(({ name, attributes }) => name === "fleet.batch" && attributes["fleet.batch"] === batch.id);
  expect(call?.trace).toBe(batch.trace);
  const items = spans.filter(
    ({ attributes, name }) => name !== "fleet.batch" && attributes["fleet.batch"] === batch.id,
  );
  expect(new Set(items.map((span) => span.trace)).size).toBe(2);
  expect(items.filter(({ name }) => name === "process place").map(({ links }) => links)).toEqual([
    [call?.id],
    [call?.id],
  ]);
  expect(items.filter(({ links }) => links.length > 0)).toHaveLength(2);
  const all = JSON.stringify(spans) + collector.raw();
  for (const secret of ["planted-setup", "planted-command", "planted-env", bed.pve.token.split("=")[1] ?? "none"])
    expect([secret, all.includes(secret)]).toEqual([secret, false]);
});

const toCollected = (span: ReturnType<InMemorySpanExporter["getFinishedSpans"]>[number]): CollectedSpan => ({
  trace: span.spanContext().traceId,
  id: span.spanContext().spanId,
  parent: span.parentSpanContext?.spanId ?? "",
  name: span.name,
  attributes: Object.fromEntries(Object.entries(span.attributes).map(([key, value]) => [key, String(value)])),
  links: span.links.map((link) => link.context.spanId),
});

test("where no collector is configured nothing of the SDK is loaded; a collector that is away holds up nothing", async () => {
  const script = `import { registerHooks } from "node:module";
    const seen = [];
    registerHooks({ resolve: (name, about, next) => { seen.push(name); return next(name, about); } });
    const { startTraces } = await import("./workers/traces.ts");
    await import("./workers/fleet.ts");
    console.log(await startTraces({ OTEL_SDK_DISABLED: "false" }), seen.filter((name) => /otel|opentelemetry/.test(name)).join());`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", script], {
    cwd: new URL("../../..", import.meta.url),
  });
  expect([...new Set(stdout.trim().split(/[ ,]/))]).toEqual(["null", "@opentelemetry/api"]);

  const without = await bed.startProcess({
    OTEL_EXPORTER_OTLP_ENDPOINT: "http://127.0.0.1:9",
    OTEL_EXPORTER_OTLP_TIMEOUT: "200",
  });
  const handle = await bed.fleet.provision({ template: "cmux-base" });
  const { sandboxId } = await handle.result({ timeoutMs: 60_000 });
  await run(bed.fleet, "destroy", { sandboxId });
  expect(await without.end("SIGTERM")).toBe(0);
  expect(without.output()).toContain("traces could not be sent");
});
