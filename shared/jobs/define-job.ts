import type { z } from "zod";
import type { QuotaClass } from "../state/quota-names.ts";

/**
 * Which queue carries a kind (see `shared/queues.ts`):
 * `place` waits for a node, `node` changes a container, `exec` only talks to one.
 */
export type QueueClass = "place" | "node" | "exec";

/** What a job kind is, as data. The steps are in `workers/handlers/<kind>.ts`. */
export interface JobSpec<Input extends z.ZodType = z.ZodType, Output extends z.ZodType = z.ZodType> {
  /** One line for help texts. */
  summary: string;
  input: Input;
  output: Output;
  /**
   * 1 when absent. Raised where workers of before would do something else than was asked: they leave such operations to
   * newer ones. A field that may be passed over, or has a default that is what was done before, needs none.
   */
  version?: number;
  queue: QueueClass;
  /** Its operation begins with a sandbox of its own, which has at most one container from then on. */
  makesSandbox?: true;
  /** Tries before a healing error becomes final; runs cut short by a crash count apart. */
  attempts: number;
  /** From the first run to the end, in ms; then the operation ends as `timeout` and is undone. */
  timeoutMs: number;
  /** Which quotas of its team it needs room in: see `QUOTA_NEEDS`; `others` when absent. */
  quotas?: QuotaClass;
  /** It gives something back, so it counts for no quota and none holds it back; or only with such values of its fields. */
  frees?: true | Readonly<Record<string, readonly string[]>>;
  /** While it is open, and for `idleSeconds` after its end, its sandbox is not idle. */
  uses?: true;
  /** What it sends to its container must not be sent twice, unless this field of its input is true. */
  onceUnless?: string;
  /** Names of input fields that are sealed in Redis and never stored with the record. */
  secret?: readonly string[];
}

export function defineJob<Input extends z.ZodType, Output extends z.ZodType>(
  spec: JobSpec<Input, Output>,
): JobSpec<Input, Output> {
  return spec;
}
