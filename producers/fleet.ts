/** The client: everything a producer does, wired. */
import type { TeamId } from "../shared/ids.ts";
import { JOB_NAMES, type JobInput, type JobName } from "../shared/jobs/index.ts";
import { SILENCE_MS } from "../shared/jobs/shell.ts";
import type { FleetRoom } from "../shared/placement/how-many.ts";
import type { FleetEvent } from "../shared/state/events.ts";
import { type Inventory, loadInventory } from "../shared/state/inventory.ts";
import { SpanKind, spanned } from "../shared/trace.ts";
import { type ApiKeys, createApiKeys } from "./api-keys.ts";
import { type Batches, createBatches, type SubmitBatch } from "./batches.ts";
import { type BranchSandbox, createBranch } from "./branch.ts";
import { capacity } from "./capacity.ts";
import { EndWatch } from "./end-watch.ts";
import { createReconcile, type Reconcile } from "./errands.ts";
import {
  type ConsumeOptions,
  consume,
  createEventGroups,
  type EventGroups,
  type EventHandler,
} from "./event-groups.ts";
import { type AnyHandle, createHandle, type Handle, type HandleOf } from "./handle.ts";
import { checkHealth, type Health } from "./health.ts";
import { createNodes, type Nodes } from "./nodes.ts";
import { checkOptions, type FleetOptions, toFleetOptions } from "./options.ts";
import { createParts, type Parts } from "./parts.ts";
import { retry } from "./retry.ts";
import { createSandboxes, type Sandboxes } from "./sandboxes.ts";
import type { ContentSource } from "./spool.ts";
import { loadOperation } from "./status.ts";
import { type SubmitOptions, submit } from "./submit.ts";
import { createTeamQuotas, type TeamQuotas } from "./team-quotas.ts";
import { createTemplatePools, type TemplatePools } from "./template-pools.ts";
import { createTemplates, type Templates } from "./templates.ts";
import { type EventOptions, watchEvents } from "./watch-events.ts";
import { createWebhookTargets, type WebhookTargets } from "./webhook-targets.ts";

/**
 * One method a job kind. Each resolves once the operation is accepted: it will end, whatever happens to this process.
 * Throws `invalid_input`, `idempotency_conflict`, `quota_exceeded`, `sandbox_not_found`, `sandbox_gone` or `redis_unavailable`.
 */
export type JobMethods = {
  readonly [N in Exclude<JobName, "upload">]: (input: JobInput<N>, options?: SubmitOptions) => Promise<HandleOf<N>>;
};

/**
 * `inplace`: of its disk, in PVE, and gone with the sandbox. `template`: a template of it, as the method of that name makes.
 * `provision` takes the id of either.
 */
export interface SnapshotMethod {
  (input: JobInput<"snapshot"> & { mode?: "inplace" }, options?: SubmitOptions): Promise<HandleOf<"snapshot">>;
  (input: JobInput<"template"> & { mode: "template" }, options?: SubmitOptions): Promise<HandleOf<"template">>;
}

export interface Fleet extends JobMethods, AsyncDisposable {
  readonly team: TeamId | undefined;
  readonly snapshot: SnapshotMethod;
  /**
   * As the other methods, with the content beside the input: read to its end, at most 64 MiB, and kept sealed before the
   * operation is asked for. Throws also `content_too_large`, `transfers_full`, `not_configured`, and what a stream throws.
   */
  upload(input: JobInput<"upload">, content: ContentSource, options?: SubmitOptions): Promise<Handle<"upload">>;
  /** A handle of an operation that this or another process began. Throws `operation_unknown`. */
  operation(id: string): Promise<AnyHandle>;
  /**
   * A failed operation asked for again: a new one of the same kind and input, for the same team. Of one that failed there
   * is one such, however often it is asked for. Throws `not_retriable`, also where its input held secrets, which went with
   * its end, `operation_unknown`, and what the kind's own method throws.
   */
  retry(id: string): Promise<AnyHandle>;
  /**
   * Many operations under one id: a provision `count` times, or any jobs, which are read as they are accepted. Resolves once
   * all are accepted. Throws `invalid_input` for the options or a bad provision, `idempotency_conflict` where the id had
   * other input, or what the source throws; a bad job of a source fails its item alone. After a crash or an error the same
   * id with the same source goes on, and nothing is done twice.
   */
  readonly batch: SubmitBatch;
  readonly batches: Batches;
  readonly branch: BranchSandbox;
  events(options?: EventOptions): AsyncIterableIterator<FleetEvent>;
  /**
   * Shares the events among all who consume with this group's name: each goes to one of them, again where that one dies.
   * Resolves once `options.signal` aborts and the event in hand is done with; `close` does not wait for that one.
   */
  consume(group: string, handle: EventHandler, options?: ConsumeOptions): Promise<void>;
  readonly eventGroups: EventGroups;
  readonly sandboxes: Sandboxes;
  readonly templates: Templates;
  readonly nodes: Nodes;
  readonly reconcile: Reconcile;
  readonly quotas: TeamQuotas;
  readonly pools: TemplatePools;
  readonly keys: ApiKeys;
  readonly webhooks: WebhookTargets;
  /**
   * How many more of a provision fit, where, and what limits it, by the rules that place it and what workers last read of
   * the cluster. Throws `node_unreachable` before any has, and what the provision itself would be refused with.
   */
  capacity(provision: JobInput<"provision">): Promise<FleetRoom>;
  /** What workers last read of the cluster; null before any has. */
  inventory(): Promise<Inventory | null>;
  /** Whether work sent now would be done. Never throws. */
  health(): Promise<Health>;
  /** Ends waits and iterators and closes the connections, at once; operations go on. */
  close(): Promise<void>;
}

/** A client of the fleet behind `options.redis`. Connects on first use. Throws `not_configured`. */
export function createFleet(options: FleetOptions): Fleet {
  const parts = createParts(checkOptions(options));
  const watch = new EndWatch(parts);
  const methods = createMethods(parts, watch);
  const sandboxes = createSandboxes(parts);
  const { submit: batch, ...batches } = createBatches(parts, watch);
  const closing = new AbortController();
  const close = async () => {
    closing.abort();
    watch.close();
    await parts.close();
  };
  return {
    ...methods,
    team: parts.team,
    async operation(id) {
      const record = await loadOperation(parts, id);
      return toAnyHandle(parts, watch, record);
    },
    async retry(id) {
      const { id: again, sandbox, kind } = await retry(parts, id);
      return toAnyHandle(parts, watch, { id: again, sandbox, kind });
    },
    batch: (source, options) => batch(source, options),
    batches,
    branch: createBranch(parts, { sandboxes, methods, batch }),
    events: (eventOptions = {}) => watchEvents(parts, eventOptions, closing.signal),
    consume: (group, handle, consumeOptions = {}) => consume(parts, group, handle, consumeOptions, closing.signal),
    eventGroups: createEventGroups(parts),
    sandboxes,
    templates: createTemplates(parts, sandboxes),
    nodes: createNodes(parts, sandboxes, {
      destroy: async (sandboxId) => (await methods.destroy({ sandboxId })).result(),
      migrate: async (sandboxId) => (await methods.migrate({ sandboxId })).result(),
    }),
    reconcile: createReconcile(parts),
    quotas: createTeamQuotas(parts),
    pools: createTemplatePools(parts, sandboxes),
    keys: createApiKeys(parts),
    webhooks: createWebhookTargets(parts),
    capacity: (provision) => capacity(parts, provision),
    inventory: () => parts.link.request((redis) => loadInventory(redis, parts.keys)),
    health: () => checkHealth(parts),
    close,
    [Symbol.asyncDispose]: close,
  };
}

/** A client as REDIS_URL, FLEET_PREFIX, FLEET_TEAM and FLEET_SECRET_KEY say. Throws `not_configured`. */
export function createFleetFromEnv(env: Readonly<Record<string, string | undefined>>): Fleet {
  return createFleet(toFleetOptions(env));
}

function createMethods(parts: Parts, watch: EndWatch): JobMethods & Pick<Fleet, "upload" | "snapshot"> {
  const begin = async <N extends JobName>(
    kind: N,
    input: JobInput<N>,
    options: SubmitOptions = {},
    content?: ContentSource,
  ): Promise<HandleOf<N>> => {
    const span = { kind: SpanKind.PRODUCER, attributes: { "fleet.kind": kind } };
    const { id, sandbox } = await spanned(`fleet.${kind}`, span, async (asked) => {
      const accepted = await submit(parts, kind, input, { ...options, listener: watch.listener }, content);
      const { id: operation, team } = accepted;
      asked.setAttributes({ "fleet.operation": operation, "fleet.sandbox": accepted.sandbox, "fleet.team": team });
      return accepted;
    });
    return createHandle(parts, watch, { id, sandboxId: sandbox, kind, aliveMs: toAliveMs(kind, input) });
  };
  const methodOf =
    <N extends JobName>(kind: N) =>
    (input: JobInput<N>, options?: SubmitOptions) =>
      begin(kind, input, options);
  return {
    // Object.fromEntries loses which kind has which method; the keys are the catalog's.
    ...(Object.fromEntries(JOB_NAMES.map((kind) => [kind, methodOf(kind)])) as unknown as JobMethods),
    upload: (input, content, options) => begin("upload", input, options, content),
    // An overload's one implementation can't be typed by its input.
    snapshot: (({ mode, ...input }: { mode?: string } & Record<string, unknown>, options?: SubmitOptions) => {
      if (mode === "template") return begin("template", input as JobInput<"template">, options);
      const rest = mode === undefined || mode === "inplace" ? input : { ...input, mode }; // any other is refused by name
      return begin("snapshot", rest as JobInput<"snapshot">, options);
    }) as SnapshotMethod,
  };
}

/** Whoever opened a shell keeps it open. */
function toAliveMs(kind: JobName, input: object): number | undefined {
  if (kind !== "shell") return undefined;
  return ("silenceMs" in input ? Number(input.silenceMs) : SILENCE_MS) / 4;
}

function toAnyHandle(
  parts: Parts,
  watch: EndWatch,
  { id, sandbox, kind }: { id: Handle<JobName>["id"]; sandbox: Handle<JobName>["sandboxId"]; kind: JobName },
): AnyHandle {
  return createHandle(parts, watch, { id, sandboxId: sandbox, kind }) as AnyHandle; // its kind decides its result
}
