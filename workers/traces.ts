/** Sends traces to an OpenTelemetry collector. Its packages are loaded where one is configured, and nowhere else. */
import type { Sampler } from "@opentelemetry/sdk-trace";
import type { Telemetry } from "bullmq";
import type { Logger } from "pino";
import type { TraceConfig } from "../shared/config-traces.ts";

export interface Traces extends AsyncDisposable {
  /** For BullMQ's Workers: a job's run is a span of the trace that the job brings along. */
  readonly telemetry: Telemetry;
}

/** Null where no collector is configured. Sets up this process' OpenTelemetry. */
export async function startTraces(config: TraceConfig, log: Logger): Promise<Traces | null> {
  const { OTEL_EXPORTER_OTLP_ENDPOINT: all, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: own } = config;
  if ((all === undefined && own === undefined) || config.OTEL_SDK_DISABLED === "true") return null;
  const [api, core, sdk, resources, { AsyncLocalStorageContextManager }, { OTLPTraceExporter }, { BullMQOtel }] =
    await Promise.all([
      import("@opentelemetry/api"),
      import("@opentelemetry/core"),
      import("@opentelemetry/sdk-trace"),
      import("@opentelemetry/resources"),
      import("@opentelemetry/context-async-hooks"),
      import("@opentelemetry/exporter-trace-otlp-proto"),
      import("bullmq-otel"),
    ]);
  // Its text alone: what else is in it may hold the headers.
  const tell = (error: unknown) => log.warn({ reason: textOf(error) }, "traces could not be sent");
  core.setGlobalErrorHandler(tell);
  const provider = new sdk.TracerProvider({
    sampler: toSampler(config, sdk),
    resource: resources
      .resourceFromAttributes({ "service.name": "sandbox-fleet" })
      .merge(resources.detectResources({ detectors: [resources.envDetector, resources.serviceInstanceIdDetector] })),
    // The exporter reads OTEL_EXPORTER_OTLP_*: endpoint, headers, certificates, compression.
    spanProcessors: [
      new sdk.BatchSpanProcessor({
        exporter: new OTLPTraceExporter({ timeoutMillis: config.OTEL_EXPORTER_OTLP_TIMEOUT }),
      }),
    ],
  });
  api.context.setGlobalContextManager(new AsyncLocalStorageContextManager());
  api.propagation.setGlobalPropagator(new core.W3CTraceContextPropagator());
  api.trace.setGlobalTracerProvider(provider);
  return {
    telemetry: onlyRuns(new BullMQOtel({ tracerName: "sandbox-fleet" })),
    [Symbol.asyncDispose]: () => provider.shutdown().catch(tell),
  };
}

const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

function toSampler(
  { OTEL_TRACES_SAMPLER: name, OTEL_TRACES_SAMPLER_ARG: ratio, FLEET_TRACES_PER_SECOND: perSecond }: TraceConfig,
  sdk: typeof import("@opentelemetry/sdk-trace"),
): Sampler {
  const chosen = name.endsWith("always_on")
    ? new sdk.AlwaysOnSampler()
    : name.endsWith("always_off")
      ? new sdk.AlwaysOffSampler()
      : new sdk.TraceIdRatioBasedSampler(ratio);
  const root = limitRate(chosen, perSecond);
  return name.startsWith("parentbased_") ? new sdk.ParentBasedSampler({ root }) : root;
}

/** No more than so many a second, a second's worth at once: a span costs a command a hundredth of what else it costs. */
export function limitRate(sampler: Sampler, perSecond: number, now: () => number = () => performance.now()): Sampler {
  let left = perSecond;
  let at = now();
  return {
    shouldSample(...span) {
      const chosen = sampler.shouldSample(...span);
      if (chosen.decision === NOT_RECORD) return chosen;
      const time = now();
      left = Math.min(perSecond, left + ((time - at) * perSecond) / 1_000);
      at = time;
      if (left < 1) return { decision: NOT_RECORD };
      left -= 1;
      return chosen;
    },
    toString: () => `${sampler}, at most ${perSecond} a second`,
  };
}

/** `SamplingDecision.NOT_RECORD`; the enum is in the SDK, which is loaded where a collector is configured. */
const NOT_RECORD = 0;

/**
 * Of BullMQ's spans those of runs: it has one, too, each time that it looks for a job. Without its dozen attributes and events,
 * which the run's own tell better, and which were most of what a span of a command costs.
 */
function onlyRuns({ tracer, contextManager }: Telemetry): Telemetry {
  type Tracer = Telemetry["tracer"];
  const none: ReturnType<Tracer["startSpan"]> = {
    setSpanOnContext: (context) => context,
    setAttribute() {},
    setAttributes() {},
    addEvent() {},
    recordException() {},
    end() {},
  };
  const startSpan: Tracer["startSpan"] = (name, ...rest) => {
    if (!name.startsWith("process ")) return none;
    const span = tracer.startSpan(name, ...rest);
    return { ...none, setSpanOnContext: (context) => span.setSpanOnContext(context), end: () => span.end() };
  };
  type Contexts = Telemetry["contextManager"];
  const contexts: Contexts = {
    active: () => contextManager.active(),
    getMetadata: (context) => contextManager.getMetadata(context),
    fromMetadata: (active, metadata) => contextManager.fromMetadata(active, metadata),
    with: (context, work) => (context === contextManager.active() ? work() : contextManager.with(context, work)),
  };
  return { tracer: { startSpan }, contextManager: contexts };
}
