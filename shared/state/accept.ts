/** Of accepting operations: what ACCEPT is asked with, and what its replies mean. */
import { createHash, createHmac } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import { FleetError } from "../errors.ts";
import { OperationId, SandboxId, TeamId } from "../ids.ts";
import type { JobSpec } from "../jobs/define-job.ts";
import type { TtlAction } from "../jobs/fields.ts";
import { poolOf } from "../jobs/fits-pool.ts";
import { type JobName, jobs, parseInput } from "../jobs/index.ts";
import type { ProvisionInput } from "../jobs/provision.ts";
import { PLACE } from "../queues.ts";
import { encodeFields, type Fields } from "./codec.ts";
import { contentGone } from "./contents.ts";
import { QUOTA_NAMES, type QuotaClass } from "./quota-names.ts";
import type { OperationRecord, SandboxRecord } from "./records.ts";
import { ttlTooLong } from "./ttl.ts";

export interface AcceptRequest {
  id: OperationId;
  kind: JobName;
  sandbox: SandboxId;
  team: TeamId;
  /** Refuse sandboxes of other teams. */
  scope: TeamId | undefined;
  /** Parsed, without its secrets. */
  input: Readonly<Record<string, unknown>>;
  /** What was sealed apart from it; tells requests apart like the rest of the input. */
  secrets: unknown;
  idempotencyKey: string | undefined;
  /** Who is told what its end was, see `keys.told`. */
  listener?: string | undefined;
  /** Waits behind interactive work. */
  batch: boolean;
  /** Where a quota of the team has no room; refused with `quota_exceeded` when absent. */
  onQuota?: OnQuota | undefined;
  /** Its TTL is that of another sandbox, of before the maximum was lowered perhaps: it gets what is allowed of it as it comes up. */
  inheritsTtl?: boolean | undefined;
  /** For `template`: the sandbox that is copied; the operation takes its turn among that one's, too. */
  source?: SandboxId;
  /** See `currentTrace`. */
  trace?: string | undefined;
  /** For kinds that make a sandbox: the record to begin with, without its ids and its team, which may be another sandbox's. */
  newSandbox: Omit<Fields<z.output<typeof SandboxRecord>>, "team"> | undefined;
}

/**
 * `refuse`: throws `quota_exceeded`. `wait`: it is accepted, and goes when there is room, first come, first served.
 * `ignore`: for the fleet's own operations; they count for no quota.
 */
export type OnQuota = "refuse" | "wait" | "ignore";

export interface Accepted {
  id: OperationId;
  sandbox: SandboxId;
  /** The sandbox's team. */
  team: TeamId;
  /** Another request with the same idempotency key made it. */
  existing: boolean;
  /** It may go and has no job yet: who asked adds it. */
  needsJob: boolean;
  queue: string;
  priority: number;
}

/** Items of a batch that ask for the same. */
export interface ItemGroup {
  request: Omit<AcceptRequest, "id" | "sandbox" | "idempotencyKey">;
  items: readonly { id: OperationId; sandbox: SandboxId; index: number }[];
}

/** What became of an item of a batch; `known`: it had been accepted or refused before. */
export type ItemAcceptance =
  | { outcome: "accepted"; accepted: Accepted }
  | { outcome: "known" }
  | { outcome: "stopped" }
  /** `hash` tells its input apart. */
  | { outcome: "refused"; error: FleetError; hash: string };

/**
 * What tells two inputs apart, whatever the order of their keys; the first is kept with the record, any may match.
 * With secrets they are keyed, one for each key: a plain hash of a short secret would give it away.
 */
export function hashInput(kind: JobName, input: unknown, secrets: unknown, keyring: readonly Buffer[]): string[] {
  const text = `${kind} ${canonical(withoutDefaults(kind, input))}`;
  if (secrets === undefined) return [createHash("sha256").update(text).digest("base64url")];
  return keyring.map((key) =>
    createHmac("sha256", key)
      .update(`${text} ${canonical(secrets)}`)
      .digest("base64url"),
  );
}

/** What a later version adds with a default must not make the same input another: names outlive versions. */
function withoutDefaults(kind: JobName, input: unknown): unknown {
  const fields: Readonly<Record<string, unknown>> = jobs[kind].input.shape;
  const isDefault = ([name, value]: [string, unknown]) => {
    const field = fields[name];
    return field instanceof z.ZodDefault && isDeepStrictEqual(field.def.defaultValue, value);
  };
  return Object.fromEntries(Object.entries(input ?? {}).filter((entry) => !isDefault(entry)));
}

function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  entries.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, one]) => `${JSON.stringify(key)}:${canonical(one)}`).join(",")}}`;
}

const AcceptReply = z.tuple([z.string(), OperationId, SandboxId], z.string());
const Facets = z.tuple([z.string(), z.string(), z.coerce.number(), TeamId]);
export const ItemReplies = z.array(z.array(z.string()));

/** Of ACCEPT's reply. Throws what it was refused for. */
export function toAccepted(reply: unknown): Accepted {
  const accepted = toAcceptedOrNot(reply);
  if (accepted instanceof FleetError) throw accepted;
  return accepted;
}

function toAcceptedOrNot(reply: unknown): Accepted | FleetError {
  const [outcome, id, sandbox, ...facets] = AcceptReply.parse(reply);
  if (outcome !== "accepted" && outcome !== "existing") return toNotAccepted(outcome, { id, sandbox, facets });
  const [parked, queue, priority, team] = Facets.parse(facets);
  const existing = outcome === "existing";
  return { id, sandbox, team, existing, needsJob: !existing && parked === "0" && queue === PLACE, queue, priority };
}

function toNotAccepted(
  outcome: string,
  { id, sandbox, facets }: { id: OperationId; sandbox: SandboxId; facets: readonly string[] },
): FleetError {
  switch (outcome) {
    case "conflict":
      return new FleetError(
        "idempotency_conflict",
        `this idempotency key belongs to ${id}, which had other input; use a new key`,
        { facts: { operation: id, sandbox } },
      );
    case "instance_taken":
    case "instance_conflict": {
      const known = outcome === "instance_conflict";
      const whose = known ? `belongs to sandbox ${sandbox}, which was asked for with other input` : "is taken";
      const text = `this instance id ${whose}; choose another`;
      return new FleetError("idempotency_conflict", text, { facts: known ? { sandbox } : {} });
    }
    case "instance_going":
      return new FleetError("sandbox_gone", `sandbox ${sandbox}, which has this instance id, is being destroyed`, {
        facts: { sandbox },
      });
    case "item_conflict":
      return itemConflict();
    case "batch_not_found":
      return new FleetError("batch_not_found", "the batch is not known (any more)");
    case "quota_exceeded":
      return toQuotaExceeded(facets[0] ?? "");
    case "ttl_too_long":
      return ttlTooLong(Number(facets[0]), { field: "ttlSeconds", asked: facets[1] });
    case "content_gone":
      return contentGone(id);
    case "in_pool":
      return new FleetError(
        "not_running",
        `sandbox ${sandbox} waits in a pool: it can be destroyed, and nothing else`,
        {
          facts: { sandbox },
        },
      );
    case "sandbox_gone":
      return new FleetError("sandbox_gone", `sandbox ${sandbox} has ended`, { facts: { sandbox } });
    default:
      return new FleetError("sandbox_not_found", `there is no sandbox ${sandbox}`, { facts: { sandbox } });
  }
}

export const itemConflict = (): FleetError =>
  new FleetError(
    "idempotency_conflict",
    "this item of the batch had other input before, or is none of it; use a new batch id",
  );

/** By hand: ten thousand of them through a schema each cost as much as all the rest. */
export function toItemAcceptance(
  { id, sandbox, hash }: { id: OperationId; sandbox: SandboxId; hash: string },
  reply: string,
): ItemAcceptance {
  const [outcome = "", ...facets] = reply.split(" ");
  const [parked, queue = "", priority, team] = facets;
  switch (outcome) {
    case "accepted": {
      const rest = { team: team as TeamId, needsJob: parked === "0", queue, priority: Number(priority) }; // as it was asked for
      return { outcome, accepted: { id, sandbox, existing: false, ...rest } };
    }
    case "item_known":
      return { outcome: "known" };
    case "batch_stopped":
      return { outcome: "stopped" };
    default:
      return { outcome: "refused", error: toNotAccepted(outcome, { id, sandbox, facets }), hash };
  }
}

/** Items that are accepted in one step: thousands would keep Redis from everybody else. */
const STEP = 50;

export function inSteps<T extends { items: readonly unknown[] }>(groups: readonly T[]): T[][] {
  const steps: T[][] = [];
  let room = 0;
  for (const group of groups) {
    for (let at = 0; at < group.items.length; ) {
      if (room === 0) {
        steps.push([]);
        room = STEP;
      }
      const items = group.items.slice(at, at + room);
      steps.at(-1)?.push({ ...group, items });
      at += items.length;
      room -= items.length;
    }
  }
  return steps;
}

/** In `place`: what fills pools waits behind every team's work, and nothing gives way to it. */
const PRIORITY = { interactive: 1, batch: 2, pool: 3 };

/** What does not depend on which operation it becomes: the script adds the ids. */
export function toAcceptArgs(request: ItemGroup["request"], now: number, keyring: readonly Buffer[]) {
  const spec: JobSpec = jobs[request.kind];
  const lane = request.newSandbox?.pool == null ? (request.batch ? "batch" : "interactive") : "pool";
  const hashes = hashInput(request.kind, request.input, request.secrets, keyring);
  const priority = spec.queue !== "place" ? 0 : PRIORITY[lane];
  const operation: Fields<OperationRecord> = {
    kind: request.kind,
    input: request.input,
    inputHash: hashes[0] ?? "",
    status: "queued",
    version: spec.version,
    seq: 0,
    priority,
    claims: 0,
    attempts: 0,
    trace: request.trace,
    acceptedAt: now,
  };
  return {
    kind: request.kind,
    team: request.team,
    scope: request.scope,
    route: spec.queue,
    destroys: request.kind === "destroy",
    batch: request.batch,
    lane,
    pool: request.kind === "provision" && lane !== "pool" ? poolOf(request.input as ProvisionInput) : undefined, // parsed as that
    onQuota: request.onQuota,
    sealed: request.secrets !== undefined,
    priority: String(priority),
    class: toQuotaClass(request),
    source: request.source,
    trace: request.trace,
    hashes,
    uses: spec.uses === true,
    once: spec.onceUnless !== undefined && request.input[spec.onceUnless] !== true,
    instance: request.newSandbox?.instanceId,
    ttl: toAskedTtl(request),
    now,
    operationSet: encodeFields(operation).set,
    sandboxSet: encodeFields(request.newSandbox ?? {}).set,
  };
}

export function toOneAcceptArgs(request: AcceptRequest, now: number, keyring: readonly Buffer[]) {
  const { id, sandbox, idempotencyKey: key, listener } = request;
  // Hashed, since a caller's key may hold anything and becomes part of a Redis key.
  const idempotency = key === undefined ? undefined : createHash("sha256").update(key).digest("base64url");
  return { ...toAcceptArgs(request, now, keyring), id, sandbox, idempotency, listener };
}

/** In its place comes each sandbox that is due. */
export const ANY_SANDBOX = SandboxId.parse(`sbx_${"0".repeat(16)}`);

/** Of END_DUE. It has no idempotency key: the step that accepts it is the one that finds it due. */
export function toEndRequest(action: TtlAction, now: number) {
  const kind: JobName = action === "destroy" ? "destroy" : "power";
  const rest = action === "destroy" ? {} : { action, allowStop: true, ifExpired: true };
  const input = parseInput(kind, { sandboxId: ANY_SANDBOX, ...rest });
  const own = { team: TeamId.parse("any"), scope: undefined, secrets: undefined, batch: false, newSandbox: undefined };
  const args = toAcceptArgs({ kind, input, ...own, onQuota: "ignore" }, now, []);
  return { ...args, hashes: [], operationSet: [...args.operationSet, ...encodeFields({ inputHash: "" }).set] };
}

const AskedTtl = z.object({ ttlSeconds: z.number().nullable() });

/** Held against the workers' maximum; undefined: none is asked for. */
function toAskedTtl({ kind, input, inheritsTtl }: ItemGroup["request"]): number | "never" | undefined {
  if (inheritsTtl) return undefined;
  const asked = kind === "provision" || kind === "update" ? AskedTtl.safeParse(input).data : undefined;
  return asked && (asked.ttlSeconds ?? "never");
}

/** What it counts for; undefined: nothing. */
function toQuotaClass({ kind, input, onQuota }: ItemGroup["request"]): QuotaClass | undefined {
  const { frees, quotas = "others" }: JobSpec = jobs[kind];
  const isFreeing =
    frees === true || Object.entries(frees ?? {}).some(([field, ones]) => ones.some((one) => one === input[field]));
  return isFreeing || onQuota === "ignore" ? undefined : quotas;
}

const Shortage = z.object({
  team: TeamId,
  quota: z.enum(QUOTA_NAMES),
  limit: z.number(),
  used: z.number(),
  /** Others of the team that wait for room and go first. */
  waiting: z.number().optional(),
  /** For the rate: when there will be room. */
  retryAfterMs: z.number().optional(),
});

function toQuotaExceeded(json: string): FleetError {
  const { team, quota, limit, used, waiting = 0, retryAfterMs } = Shortage.parse(JSON.parse(json));
  const rate = quota === "rate";
  const numbers = `${used} of ${limit} ${rate ? "operations a minute" : quota}`;
  const others = waiting > 0 ? `, and ${waiting} of its operations wait for room` : "";
  const soon = retryAfterMs === undefined ? "ask again later" : `ask again in ${Math.ceil(retryAfterMs / 1_000)} s`;
  const way = rate ? soon : "ask again when some have ended";
  const text = `team ${team} has ${numbers}${others}; ${way}, or let it wait with onQuota "wait"`;
  return new FleetError("quota_exceeded", text, {
    facts: { team, quota, limit, used, waiting, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) },
  });
}
