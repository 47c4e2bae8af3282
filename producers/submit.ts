/** From an input to an accepted operation with its job in a queue. */
import { z } from "zod";
import { FleetError } from "../shared/errors.ts";
import {
  type NodeName,
  newOperationId,
  newSandboxId,
  type OperationId,
  POOL_TEAM,
  SandboxId,
  TeamId,
} from "../shared/ids.ts";
import { ADOPTED } from "../shared/jobs/adopt.ts";
import { checkRanges } from "../shared/jobs/check-ranges.ts";
import { type JobName, type ParsedInput, parseInput } from "../shared/jobs/index.ts";
import type { Accepted, AcceptRequest, ItemGroup } from "../shared/state/accept.ts";
import { loadInventory, type Replica } from "../shared/state/inventory.ts";
import type { SecretValues } from "../shared/state/secrets.ts";
import { currentTrace } from "../shared/trace.ts";
import type { Listener } from "./end-watch.ts";
import type { Parts } from "./parts.ts";
import { splitSecrets } from "./split-secrets.ts";
import { assertSandbox, type ContentSource, spool } from "./spool.ts";

export interface SubmitOptions {
  /** The same key with the same input gives the operation that exists; with other input `idempotency_conflict`. */
  idempotencyKey?: string | undefined;
  /**
   * Where the team has used up a quota: `refuse` (default) throws `quota_exceeded`; `wait` has it accepted and go when
   * there is room, first come, first served; until then `status()` tells what it waits for.
   */
  onQuota?: "refuse" | "wait" | undefined;
}

/** Sealed values of a request that is never accepted go by themselves after this long. */
const UNCLAIMED_SECRET_SEC = 86_400;
const AskedTeam = TeamId.optional();
export const DEFAULT_TEAM = TeamId.parse("default");
const KEY_PROBLEM = "must be a text of 1 to 512 characters";
export const IdempotencyKey = z.string().min(1, KEY_PROBLEM).max(512, KEY_PROBLEM);
const OnQuota = z.enum(["refuse", "wait"]).optional();

/**
 * Accepts an operation. Resolves once it is stored, so it will end whatever happens to this process.
 * Throws `invalid_input`, `idempotency_conflict`, `quota_exceeded`, `sandbox_not_found`, `sandbox_gone`, `redis_unavailable`.
 */
export async function submit<N extends JobName>(
  parts: Parts,
  kind: N,
  raw: unknown,
  options: SubmitOptions & { listener?: Listener | undefined },
  content?: ContentSource,
): Promise<Accepted> {
  const idempotencyKey = checkIdempotencyKey(options.idempotencyKey);
  const onQuota = checkOnQuota(options.onQuota);
  const prepared = await prepare(parts, kind, raw);
  const request = { ...prepared.request, ...newIds(prepared) };
  await sealSecrets(parts, request);
  const trace = currentTrace();
  const { listener } = options;
  const asked = { ...request, idempotencyKey, onQuota, trace, listener: listener?.id };
  const forget = () => forgetSecrets(parts, request);
  listener?.expect(request.id);
  const accepting = kind === "upload" ? acceptUpload(parts, asked, content) : accept(parts, asked, forget);
  const accepted = await accepting.catch((error: unknown) => {
    listener?.dismiss(request.id);
    throw error;
  });
  if (accepted.existing) listener?.dismiss(request.id);
  if (accepted.needsJob) await addJob(parts, kind, accepted, trace);
  return accepted;
}

/** A checked input, ready to be asked for once or many times. */
export interface Prepared {
  request: ItemGroup["request"] & { secrets: SecretValues | undefined };
  /** The sandbox that it is about; undefined for one that makes a new one each time. */
  sandbox: SandboxId | undefined;
}

type Sealed = { id: OperationId; secrets: SecretValues | undefined };

/** Throws `invalid_input` and what only the cluster or a team's scope can refuse. */
export async function prepare(parts: Parts, kind: JobName, raw: unknown): Promise<Prepared> {
  const input: Record<string, unknown> = parseInput(kind, raw);
  const node = kind === "build" ? await chooseBuildNode(parts, input) : undefined;
  const { sandbox, ...target } = toTarget(parts, kind, input, node);
  await checkAgainstCluster(parts, input);
  if (kind === "adopt" || kind === "replicate") await assertNode(parts, input["node"]);
  if (kind === "shell") parts.shellInputs.assertKey();
  const { stored, secrets } = splitSecrets(kind, input);
  return { request: { ...target, kind, scope: parts.team, input: stored, secrets }, sandbox };
}

export const newIds = ({ sandbox }: Prepared): { id: OperationId; sandbox: SandboxId } => ({
  id: newOperationId(),
  sandbox: sandbox ?? newSandboxId(),
});

export async function sealSecrets(parts: Parts, { id, secrets }: Sealed): Promise<void> {
  if (!secrets) return;
  await parts.link.request(() => parts.secrets.put(id, secrets, { expiresInSec: UNCLAIMED_SECRET_SEC }));
}

export async function forgetSecrets(parts: Parts, { id, secrets }: Sealed): Promise<void> {
  if (secrets) await parts.link.request(() => parts.secrets.remove(id));
}

/** `forget`: removes what was kept for a request that comes to nothing. Should it fail, that still expires. */
async function accept(parts: Parts, request: AcceptRequest, forget: () => Promise<void>): Promise<Accepted> {
  try {
    const accepted = await parts.link.request(() => parts.store.accept(request));
    if (accepted.existing) await forget().catch(() => {});
    return accepted;
  } catch (error) {
    // After a lost reply the operation may exist, and needs its secrets; only a refusal is certain.
    if (error instanceof FleetError && error.policy === "never") await forget().catch(() => {});
    throw error;
  }
}

/** What the content was tells requests apart, as a secret does: a plain hash of a short one would give it away. */
async function acceptUpload(parts: Parts, request: AcceptRequest, content: ContentSource | undefined) {
  const { id, sandbox } = request;
  const forget = () => parts.contents.remove(id, parts.link.request);
  await assertSandbox(parts, sandbox);
  const digest = await spool(parts, id, content).catch(async (error: unknown) => {
    await forget().catch(() => {});
    throw error;
  });
  return accept(parts, { ...request, secrets: digest }, forget);
}

/** A failure here is no failure of the request: the workers' sweeper adds the job of an accepted operation that has none. */
async function addJob(parts: Parts, kind: JobName, accepted: Accepted, trace: string | undefined): Promise<void> {
  const { id, sandbox, team, queue, priority } = accepted;
  const data = { operation: id, sandbox, team };
  await parts.link.request(() => parts.queues.add(queue, { id, kind, priority, data, trace })).catch(() => {});
}

/** Which sandbox an operation is about, and for a new one the record to begin with. */
function toTarget(parts: Parts, kind: JobName, input: Readonly<Record<string, unknown>>, node?: NodeName) {
  const asked = AskedTeam.parse(input["team"]);
  if (asked !== undefined && parts.team !== undefined && asked !== parts.team) {
    throw new FleetError("invalid_input", `team: this client was made for team ${parts.team} and can name no other`, {
      facts: { fields: ["team"] },
    });
  }
  const team = asked ?? parts.team ?? DEFAULT_TEAM;
  if (team === POOL_TEAM) {
    throw new FleetError("invalid_input", `team: ${team} is the fleet's own; choose another name`, {
      facts: { fields: ["team"] },
    });
  }
  const begin = { state: "placing" as const, createdAt: parts.now() };
  switch (kind) {
    case "provision": {
      const {
        instanceId,
        template,
        metadata,
        ttlSeconds,
        ttlAction,
        ttlExtendOnUse,
        idleSeconds,
        idleAction,
        wakeOnHttp,
        priority,
      } = input as ParsedInput<"provision">; // just parsed as that kind
      const idle = { idleSeconds: idleSeconds ?? undefined, idleAction };
      const kept = { metadata, ttlSeconds, ttlAction, ttlExtendOnUse, ...idle, wakeOnHttp };
      const given = { instanceId, template: String(template), ...kept };
      return { team, sandbox: undefined, batch: priority === "batch", newSandbox: { ...begin, ...given } };
    }
    case "adopt": {
      const { node, instanceId, metadata } = input as ParsedInput<"adopt">; // as above
      const newSandbox = { ...begin, node, instanceId, template: ADOPTED, metadata };
      return { team, sandbox: undefined, batch: false, newSandbox };
    }
    case "template": {
      const { sandboxId: source, version, metadata } = input as ParsedInput<"template">; // as above
      const newSandbox = { ...begin, template: source, source, version, metadata };
      return { team, sandbox: undefined, batch: false, source, newSandbox };
    }
    case "replicate": {
      const { node: to, template } = input as ParsedInput<"replicate">; // as above
      return { team, sandbox: undefined, batch: false, newSandbox: { ...begin, node: to, template: String(template) } };
    }
    case "build": {
      const { from, version, metadata } = input as ParsedInput<"build">; // as above
      const template = "archive" in from ? from.archive : String(from.template);
      return { team, sandbox: undefined, batch: false, newSandbox: { ...begin, node, template, version, metadata } };
    }
    default:
      return { team, sandbox: SandboxId.parse(input["sandboxId"]), batch: false, newSandbox: undefined };
  }
}

/** What only the cluster's inventory can tell; before any worker has written it, workers refuse later. */
async function checkAgainstCluster(parts: Parts, input: Readonly<Record<string, unknown>>): Promise<void> {
  const { cpuunits, node, sandboxId, template } = Asked.parse(input);
  if (template !== undefined) await checkOwner(parts, template);
  if (cpuunits === undefined) return;
  const [inventory, sandbox] = await parts.link.request((redis) =>
    Promise.all([
      loadInventory(redis, parts.keys),
      sandboxId === undefined ? null : parts.store.loadSandbox(SandboxId.parse(sandboxId)),
    ]),
  );
  checkRanges({ cpuunits, node: node ?? sandbox?.node }, inventory?.nodes ?? []);
}

/** The one that was asked for, else the first that has what the build begins with; workers look at the rest. */
async function chooseBuildNode(parts: Parts, input: Readonly<Record<string, unknown>>): Promise<NodeName> {
  const { from, node } = input as ParsedInput<"build">; // just parsed as that kind
  await assertNode(parts, node);
  if (node !== undefined) return node;
  const inventory = await parts.link.request((redis) => loadInventory(redis, parts.keys));
  const online = inventory?.nodes.filter((one) => one.online) ?? [];
  const isBase = ({ name, tags, vmid, owner, online: isOnline }: Replica, wanted: string | number) =>
    isOnline &&
    (owner === undefined || parts.team === undefined || owner.team === parts.team) &&
    [name, ...tags, ...tags.map((tag) => tag.replace(`${name}-`, `${name}:`)), vmid, owner?.sandbox].some(
      (one) => one === wanted,
    );
  const found =
    "archive" in from
      ? online.find(({ storages }) =>
          storages.some(({ name, active }) => active && from.archive.startsWith(`${name}:`)),
        )?.name
      : inventory?.replicas.find((one) => isBase(one, from.template))?.node;
  if (found) return found;
  const what = "archive" in from ? `the storage of ${from.archive}` : `template ${from.template}`;
  throw new FleetError(
    "template_not_found",
    `from: no node that is online has ${what}; give node, or look at fleet template ls`,
    {
      facts: { fields: ["from"] },
    },
  );
}

/** Nobody would ever serve the queue of a node that there is not. */
async function assertNode(parts: Parts, node: unknown): Promise<void> {
  const inventory = await parts.link.request((redis) => loadInventory(redis, parts.keys));
  if (!inventory)
    throw new FleetError("node_unavailable", "no worker has read the cluster yet; start one, then ask again");
  const names = inventory.nodes.map(({ name }) => name);
  if (node === undefined || names.some((name) => name === node)) return;
  throw new FleetError("invalid_input", `node: there is no node ${String(node)}; nodes are ${names.join(", ")}`, {
    facts: { fields: ["node"] },
  });
}

const Asked = z.object({
  cpuunits: z.number().optional(),
  node: z.string().optional(),
  sandboxId: z.string().optional(),
  template: z.union([z.string(), z.number()]).optional(),
});

/** A team's snapshots and templates are its own. */
async function checkOwner(parts: Parts, template: string | number): Promise<void> {
  if (parts.team === undefined || typeof template !== "string") return;
  const [isSnapshot, made] = [template.startsWith("snap_"), SandboxId.safeParse(template).data];
  if (!isSnapshot && made === undefined) return;
  const owned = await parts.link.request<{ team: TeamId } | null>(() =>
    made === undefined ? parts.store.loadSnapshot(template) : parts.store.loadSandbox(made),
  );
  if (owned && owned.team !== parts.team) {
    const what = isSnapshot ? "snapshot" : "template";
    throw new FleetError("template_not_found", `there is no ${what} ${template}`, { facts: { template } });
  }
}

function checkIdempotencyKey(key: string | undefined): string | undefined {
  const parsed = IdempotencyKey.optional().safeParse(key);
  if (parsed.success) return parsed.data;
  throw new FleetError("invalid_input", `idempotencyKey: ${KEY_PROBLEM}`, {
    facts: { fields: ["idempotencyKey"] },
  });
}

export function checkOnQuota(onQuota: unknown): "refuse" | "wait" | undefined {
  const parsed = OnQuota.safeParse(onQuota);
  if (parsed.success) return parsed.data;
  throw new FleetError("invalid_input", 'onQuota: must be "refuse" or "wait"', { facts: { fields: ["onQuota"] } });
}
