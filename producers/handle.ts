/** What a producer holds of an operation. */
import { FleetError, fromErrorRecord } from "../shared/errors.ts";
import type { OperationId, SandboxId } from "../shared/ids.ts";
import { type JobName, type JobOutput, jobs } from "../shared/jobs/index.ts";
import type { EndedOperation } from "../shared/state/records.ts";
import { type Content, createContent } from "./content.ts";
import { type EndWatch, toUnknown, type Wait } from "./end-watch.ts";
import { type OutputChunk, watchOutput } from "./output.ts";
import type { Parts } from "./parts.ts";
import { createTyping, type Typing } from "./shell.ts";
import { loadStatus, type OperationView } from "./status.ts";

export interface Handle<N extends JobName> {
  readonly id: OperationId;
  readonly sandboxId: SandboxId;
  readonly kind: N;
  /**
   * Resolves with the result, at once where the operation has ended before.
   * Throws the operation's own FleetError; `timeout` with `facts.goesOn` when `timeoutMs` passed first (the operation
   * goes on); `operation_unknown` when its record is gone; `signal`'s reason when that was aborted.
   */
  result(options?: Wait): Promise<JobOutput<N>>;
  /** Where the operation and its sandbox stand. Throws `operation_unknown`. */
  status(): Promise<OperationView>;
  /** Asks the operation to undo and end as `canceled`; false when it has ended already. Throws `operation_unknown`. */
  cancel(): Promise<boolean>;
}

/** What can be watched while it runs. */
export interface Watchable {
  /**
   * What the command prints, as it comes; asked late or again, from the beginning, while the record is kept. Ends when
   * the operation has ended, however it did: `result()` tells. The newest MiB is kept; what is missing is told in place.
   * Throws `timeout` when `timeoutMs` passed first, `operation_unknown`, or `signal`'s reason.
   */
  output(options?: Wait): AsyncIterableIterator<OutputChunk>;
}

/** What fetches something. */
export interface Fetching {
  /**
   * What was fetched, once it is. It may be asked for late and from another process, for as long as the operation's
   * record is kept, within a bound (512 MiB of all transfers; the oldest go first), and for 5 minutes after it was read
   * to its end. Reading throws as `result` does, then `content_gone`, `content_damaged` or `not_configured` (it needs
   * `secretKey`).
   */
  content(options?: Wait): Content;
}

/** What a kind's operations are held by. */
export type HandleOf<N extends JobName> = Handle<N> &
  (N extends "exec" | "build"
    ? Watchable
    : N extends "shell"
      ? Watchable & Typing
      : N extends "download"
        ? Fetching
        : unknown);
export type ExecHandle = HandleOf<"exec">;
export type ShellHandle = HandleOf<"shell">;
export type DownloadHandle = HandleOf<"download">;

/** A handle of any kind; `kind` tells which result it has. */
export type AnyHandle = { [N in JobName]: HandleOf<N> }[JobName];

export function createHandle<N extends JobName>(
  parts: Parts,
  watch: EndWatch,
  { id, sandboxId, kind, aliveMs }: { id: OperationId; sandboxId: SandboxId; kind: N; aliveMs?: number | undefined },
): HandleOf<N> {
  const base: Handle<N> = {
    id,
    sandboxId,
    kind,
    result: async (options = {}) => toResult(kind, await watch.wait(id, options)),
    status: () => loadStatus(parts, id),
    async cancel() {
      const why = { code: "canceled" as const, message: "canceled by its producer", facts: {} };
      const outcome = await parts.link.request(() => parts.store.abort(id, why, parts.team));
      if (outcome === "unknown") throw toUnknown(id);
      return outcome === "ok";
    },
  };
  const output = (options: Wait = {}) => watchOutput(parts, watch, id, options);
  const content = (options: Wait = {}) =>
    createContent(parts, id, { ended: () => base.result(options), signal: options.signal });
  const more = () => {
    if (kind === "exec" || kind === "build") return { output };
    if (kind === "shell") return { output, ...createTyping(parts, watch, id, aliveMs) };
    return kind === "download" ? { content } : {};
  };
  return { ...base, ...more() } as unknown as HandleOf<N>; // tsc does not narrow N by kind
}

/** Throws the operation's own error. */
export function toResult<N extends JobName>(kind: N, ended: EndedOperation): JobOutput<N> {
  const facts = { operation: ended.id, sandbox: ended.sandbox };
  if (ended.status !== "succeeded") {
    const { code, message, facts: known } = ended.error ?? { code: "internal", message: "it left no error", facts: {} };
    throw fromErrorRecord({ code, message, facts: { ...facts, ...known } });
  }
  const parsed = jobs[kind].output.safeParse(ended.result);
  if (parsed.success) return parsed.data as JobOutput<N>; // the catalog's union loses which schema parsed it
  const fields = parsed.error.issues.map((issue) => issue.path.map(String).join("."));
  throw new FleetError("internal", `the result does not fit this client's version: ${fields.join(", ")}`, { facts });
}
