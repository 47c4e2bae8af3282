/**
 * Spans of OpenTelemetry, and how a trace gets from the process that asks to those that work. In a process where nobody has
 * set up its SDK all of this does nothing. Attributes are ids, names and codes: never a text, an input or an output.
 */
import {
  type Attributes,
  context,
  propagation,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
} from "@opentelemetry/api";
import { toFleetError } from "./errors.ts";

export { type Attributes, SpanKind } from "@opentelemetry/api";

const tracer = trace.getTracer("sandbox-fleet");

/** For another process: the active span as W3C headers, in JSON as BullMQ keeps it with a job. Undefined: nothing traces. */
export function currentTrace(): string | undefined {
  const headers: Record<string, string> = {};
  propagation.inject(context.active(), headers);
  return Object.keys(headers).length === 0 ? undefined : JSON.stringify(headers);
}

/** A span around `work`; it ends with the code of what that throws. */
export function spanned<T>(
  name: string,
  { kind = SpanKind.INTERNAL, attributes = {} }: { kind?: SpanKind; attributes?: Attributes },
  work: (span: Span) => Promise<T>,
): Promise<T> {
  // Of a trace that is not sampled nothing more is made.
  const around = trace.getActiveSpan();
  if (around !== undefined && !around.isRecording()) return work(around);
  return tracer.startActiveSpan(name, { kind, attributes }, async (span) => {
    try {
      return await work(span);
    } catch (error) {
      failSpan(span, toFleetError(error).code);
      throw error;
    } finally {
      span.end();
    }
  });
}

const failSpan = (span: Span, code: string) =>
  span.setAttribute("fleet.code", code).setStatus({ code: SpanStatusCode.ERROR, message: code });

/** A span of what has just ended, `ms` long, inside the active one; none where there is no active one. */
export function addPastSpan(
  name: string,
  { ms, kind, attributes, failed }: { ms: number; kind: SpanKind; attributes: Attributes; failed: boolean },
): void {
  if (trace.getActiveSpan() === undefined) return;
  const now = Date.now();
  const span = tracer.startSpan(name, { kind, attributes, startTime: now - ms });
  if (failed) span.setStatus({ code: SpanStatusCode.ERROR });
  span.end(now);
}

/** Of the active span. */
export function annotate(attributes: Attributes): void {
  trace.getActiveSpan()?.setAttributes(attributes);
}

/** The active span stands for something that ended with this code. */
export function annotateFailure(code: string): void {
  const span = trace.getActiveSpan();
  if (span !== undefined) failSpan(span, code);
}

/** The active span stands in a trace of its own, and was brought about by the span that `headers` (`currentTrace`) name. */
export function linkTo(headers: string): void {
  const span = trace.getSpanContext(propagation.extract(ROOT_CONTEXT, JSON.parse(headers)));
  if (span !== undefined) trace.getActiveSpan()?.addLink({ context: span });
}

/** Outside of all spans: for what is shared by many, and would be told of as one's. */
export const untraced = <T>(work: () => T): T => context.with(ROOT_CONTEXT, work);
