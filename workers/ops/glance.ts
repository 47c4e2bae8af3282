/** What the boards' lists tell of a job at a glance: of its operation as it stands, and nothing that is large or secret. */
import { z } from "zod";
import { ErrorRecordSchema, isEnded, OPERATION_STATUSES, OperationRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";

export interface Glance {
  operation?: string;
  sandbox?: string;
  team?: string;
  node?: string;
  status?: string;
  step?: string;
  waitingFor?: string;
  code?: string;
  urls?: readonly string[];
}

export const JobData = z.object({ operation: z.string(), sandbox: z.string(), team: z.string() }).partial();
/** What a run has left with its job, see `JobSummary`. */
const Summary = z.object({ outcome: z.string(), node: z.string(), urls: z.array(z.string()) }).partial();
const Replies = z.array(z.tuple([z.unknown(), z.array(z.string().nullable())]));
const Stored = z.object({
  status: z.enum(OPERATION_STATUSES),
  step: OperationRecord.shape.step,
  error: ErrorRecordSchema.optional(),
  lastError: ErrorRecordSchema.optional(),
});

export interface SeenJob {
  data: unknown;
  returnvalue: unknown;
}

/** In their order; of what is no operation's job, or whose record is gone, only what the job itself says. */
export async function loadGlances({ redis, keys }: WorkerContext, jobs: readonly SeenJob[]): Promise<Glance[]> {
  const known = jobs.map(({ data }) => JobData.safeParse(data).data ?? {});
  const pipeline = redis.pipeline();
  for (const { operation = "", sandbox = "" } of known) {
    pipeline.hmget(keys.operation(operation), "status", "step", "error", "lastError", "waitingFor");
    pipeline.hmget(keys.sandbox(sandbox), "node");
  }
  const replies = Replies.parse(await pipeline.exec()).map(([, values]) => values);
  return jobs.map(({ returnvalue }, at) => {
    const summary = Summary.safeParse(returnvalue).data ?? {};
    const [status, step, error, lastError, waitingFor] = replies[2 * at] ?? [];
    const node = replies[2 * at + 1]?.[0] ?? summary.node;
    const stored = Stored.safeParse({
      status: status ?? undefined,
      step: fromJson(step),
      error: fromJson(error),
      lastError: fromJson(lastError),
    }).data;
    const ended = stored !== undefined && isEnded(stored.status);
    const code = stored?.error?.code ?? (ended ? undefined : stored?.lastError?.code);
    return withoutGaps({
      ...known[at],
      node,
      status: stored?.status ?? summary.outcome,
      step: ended ? undefined : stored?.step?.name,
      waitingFor: ended ? undefined : (waitingFor ?? undefined),
      code,
      urls: summary.urls,
    });
  });
}

const fromJson = (text: string | null | undefined): unknown =>
  text === null || text === undefined ? undefined : JSON.parse(text);

const withoutGaps = (values: { [K in keyof Glance]: Glance[K] | undefined }): Glance =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));

/** "provision · sbx_… · acme · pve1 · clone · http://…"; ends that are none say how and why. */
export function toTitle(kind: string, { sandbox, team, node, status, step, code, urls = [] }: Glance): string {
  const state = status === "succeeded" || status === "replaced" ? undefined : (step ?? status);
  const [first, ...more] = urls;
  const url = first === undefined || more.length === 0 ? first : `${first} (+${more.length})`;
  return [kind, sandbox, team, node, [state, code].filter(Boolean).join(": "), url].filter(Boolean).join(" · ");
}

const LONG = 300;

/** Someone may have put anything into a job: long texts are cut, and what lies deep is left out. */
export function toShort(value: unknown, depth = 0): unknown {
  if (typeof value === "string")
    return value.length > LONG ? `${value.slice(0, LONG)}… (${value.length} characters)` : value;
  if (typeof value !== "object" || value === null) return value;
  if (depth > 3) return "…";
  if (Array.isArray(value)) return value.slice(0, 20).map((one) => toShort(one, depth + 1));
  const entries = Object.entries(value).slice(0, 30);
  return Object.fromEntries(entries.map(([key, one]) => [key, toShort(one, depth + 1)]));
}
