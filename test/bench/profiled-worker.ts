/**
 * A worker that profiles itself: SIGUSR2 begins, SIGUSR2 ends and prints how many samples were telemetry's own, as one line of
 * JSON. A sample is whose code is nearest to it on the stack: what Node does is its caller's, and work inside a span is not the
 * span's.
 */
import { Session } from "node:inspector/promises";

const METRICS = /\/(prom-client|@bull-board)\/|\/workers\/(metrics\.ts|ops\/)/;
const TRACES = /\/node_modules\/(@opentelemetry|bullmq-otel)\/|\/(shared\/trace|workers\/traces)\.ts$/;
const NOTHING = /^\((idle|garbage collector)\)$/;

const session = new Session();
session.connect();
await session.post("Profiler.enable");
await session.post("Profiler.setSamplingInterval", { interval: 250 });
let isOn = false;
process.on("SIGUSR2", async () => {
  isOn = !isOn;
  if (isOn) return void (await session.post("Profiler.start"));
  const { profile } = await session.post("Profiler.stop");
  const parents = new Map(
    profile.nodes.flatMap(({ id, children = [] }) => children.map((child) => [child, id] as const)),
  );
  const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
  const fileOf = (id: number | undefined): string => {
    const node = id === undefined ? undefined : nodes.get(id);
    if (node === undefined) return "";
    const { url } = node.callFrame;
    return url.startsWith("file:") || url.startsWith("/") ? url : fileOf(parents.get(node.id));
  };
  const counts = { samples: 0, metrics: 0, traces: 0 };
  for (const { id, callFrame, hitCount = 0 } of profile.nodes) {
    if (NOTHING.test(callFrame.functionName)) continue;
    const file = fileOf(id);
    counts.samples += hitCount;
    if (METRICS.test(file)) counts.metrics += hitCount;
    if (TRACES.test(file)) counts.traces += hitCount;
  }
  process.stdout.write(`${JSON.stringify({ profile: counts })}\n`);
});
await import("../../workers/main.ts");
