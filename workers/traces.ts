/** Sends traces to an OpenTelemetry collector. Its packages are loaded where one is configured, and nowhere else. */
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
  { OTEL_TRACES_SAMPLER: name, OTEL_TRACES_SAMPLER_ARG: ratio }: TraceConfig,
  sdk: typeof import("@opentelemetry/sdk-trace"),
) {
  const root = name.endsWith("always_on")
    ? new sdk.AlwaysOnSampler()
    : name.endsWith("always_off")
      ? new sdk.AlwaysOffSampler()
      : new sdk.TraceIdRatioBasedSampler(ratio);
  return name.startsWith("parentbased_") ? new sdk.ParentBasedSampler({ root }) : root;
}

/** Of BullMQ's spans those of runs: it has one, too, each time that it looks for a job. */
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
  const startSpan: Tracer["startSpan"] = (name, ...rest) =>
    name.startsWith("process ") ? tracer.startSpan(name, ...rest) : none;
  return { tracer: { startSpan }, contextManager };
}
