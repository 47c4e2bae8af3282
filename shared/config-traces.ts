/** The settings of traces: OpenTelemetry's own variables. Its exporter reads the others, such as OTEL_EXPORTER_OTLP_HEADERS. */
import { z } from "zod";

const Endpoint = z.url({ protocol: /^https?$/, error: "must be http://host:4318 or https://" }).optional();

const SAMPLERS = [
  "always_on",
  "always_off",
  "traceidratio",
  "parentbased_always_on",
  "parentbased_always_off",
  "parentbased_traceidratio",
] as const;

export const TRACE_SETTINGS = {
  OTEL_EXPORTER_OTLP_ENDPOINT: Endpoint.describe(
    "Where an OpenTelemetry collector takes [traces](#watch-it): `http://collector:4318`; none without it",
  ),
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: Endpoint.describe(
    "Its whole URL for traces, where it has another path than `/v1/traces`",
  ),
  OTEL_EXPORTER_OTLP_PROTOCOL: z
    .literal("http/protobuf", { error: "must be http/protobuf, which every collector takes on port 4318" })
    .default("http/protobuf")
    .describe("No other"),
  OTEL_EXPORTER_OTLP_TIMEOUT: z.coerce
    .number({ error: "must be a number of ms" })
    .int()
    .min(1)
    .max(60_000)
    .default(3_000)
    .describe("How many ms a collector may take; a closing worker waits as long"),
  OTEL_TRACES_SAMPLER: z
    .enum(SAMPLERS, { error: `must be one of ${SAMPLERS.join(", ")}` })
    .default("parentbased_always_on")
    .describe("Also always_on, always_off, traceidratio, parentbased_always_off, parentbased_traceidratio"),
  OTEL_TRACES_SAMPLER_ARG: z.coerce
    .number({ error: "must be from 0 to 1" })
    .min(0)
    .max(1)
    .default(1)
    .describe("Share of the traces for traceidratio"),
  FLEET_TRACES_PER_SECOND: z.coerce
    .number({ error: "must be a whole number" })
    .int("must be a whole number")
    .min(1)
    .max(100_000)
    .default(50)
    .describe(
      "Traces that a process begins a second at most, against bursts; those that a backend samples come on top",
    ),
  OTEL_SDK_DISABLED: z
    .enum(["true", "false"], { error: "must be true or false" })
    .default("false")
    .describe("true turns traces off"),
};

export type TraceConfig = z.output<z.ZodObject<typeof TRACE_SETTINGS>>;
