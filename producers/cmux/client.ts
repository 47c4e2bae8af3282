/** The client that the cmux backend codes against, on the fleet. It needs Redis alone: no credentials of PVE. */
import { z } from "zod";
import { DEFAULT_URL_PATTERN } from "../../shared/config-gate.ts";
import { FleetError } from "../../shared/errors.ts";
import { CMUX_SERVICES } from "../../shared/jobs/adopt.ts";
import type { ServiceAuth } from "../../shared/jobs/fields.ts";
import { parseOrRefuse } from "../../shared/jobs/problems.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import { isGone, isProvisional, type SandboxRecord } from "../../shared/state/records.ts";
import { createFleet, type Fleet } from "../fleet.ts";
import type { Health } from "../health.ts";
import { type FleetOptions, toFleetOptions } from "../options.ts";
import { findSandbox, get, type InstanceQuery } from "./find.ts";
import { CmuxInstance, type ExecResult, execIn, type InstanceContext } from "./instance.ts";
import { checkUrlSettings, toHostId, toPublicUrl } from "./services.ts";
import { listManifest, resolveTemplate, type Snapshots } from "./snapshots.ts";
import { deleteTemplate, listOrphans, type OrphanedTemplate, type SavedTemplate, saveTemplate } from "./templates.ts";

export interface CmuxClientOptions extends Partial<FleetOptions> {
  /** Where snapshot ids such as `snapshot_3c251d7c` are looked up: cmux's manifest, the path of its file, or a function. */
  snapshots?: Snapshots | undefined;
  /** Today's client's name for `snapshots`. */
  snapshotResolver?: Snapshots | undefined;
  /** Longest wait for an operation in ms, a day when absent; after it `timeout` is thrown, and the operation goes on. */
  waitMs?: number | undefined;
  /** Who gets in at public URLs: everybody when absent, as with Morph. `link`: who holds a link of `instance.link`. */
  auth?: ServiceAuth | undefined;
  /** For `getPublicServiceUrl`; PVE_PUBLIC_DOMAIN and PVE_URL_PATTERN when absent, else as the workers are set. */
  publicDomain?: string | undefined;
  urlPattern?: string | undefined;
  /** In place of `process.env`, which is read here for what is not given; of the fleet's own only where `redis` is not. */
  env?: Readonly<Record<string, string | undefined>> | undefined;
}

export interface StartOptions {
  /** An id of the manifest or of the fleet, or a template's name. */
  snapshotId?: string | undefined;
  /** Goes over `snapshotId`. */
  templateVmid?: number | undefined;
  /** Its host name, and what it is found by again, from any process. The same id and options give the same instance. */
  instanceId?: string | undefined;
  ttlSeconds?: number | undefined;
  /** What happens when the time is up: `stop` when absent. A pause is a stop where nothing can be frozen. */
  ttlAction?: "pause" | "stop" | undefined;
  metadata?: Readonly<Record<string, string | undefined>> | undefined;
  /** Whom it counts for; the client's team when absent. */
  team?: string | undefined;
}

/** Of what is given here and nowhere checked again. */
const Start: z.ZodType<StartOptions> = z.object({
  snapshotId: z.string().optional(),
  templateVmid: z.number().optional(),
  instanceId: z.string().min(1).optional(),
  ttlSeconds: z.number().optional(),
  ttlAction: z.enum(["pause", "stop"]).optional(),
  metadata: z.record(z.string(), z.string().optional()).optional(),
  team: z.string().optional(),
});

export interface Instances {
  /** A new instance, once its services answer. Throws why it could not be made; then nothing of it is left. */
  start(options: StartOptions): Promise<CmuxInstance>;
  /** One that lives; of one that is being made, once it is. Throws `sandbox_not_found`, `sandbox_gone`. */
  get(query: InstanceQuery): Promise<CmuxInstance>;
  /** Those that have a container, oldest first; with all of `metadata`, if given. */
  list(filter?: { metadata?: Readonly<Record<string, string>> | undefined }): Promise<CmuxInstance[]>;
}

export interface CmuxClient extends AsyncDisposable {
  readonly instances: Instances;
  /** Of an instance as it stands, which goes on as it is. */
  createTemplateFromContainer(instanceId: string): Promise<SavedTemplate>;
  /** One that the fleet made. Throws `template_not_found`, `template_in_use`. */
  deleteTemplate(vmid: number): Promise<void>;
  /** Templates that `createTemplateFromContainer` made and whose caller never heard of; in no manifest, and not in use. */
  listOrphanedTemplates(): Promise<OrphanedTemplate[]>;
  execInContainer(
    vmid: number,
    command: string,
    options?: { timeoutMs?: number | undefined; instanceId?: string | undefined; hostname?: string | undefined },
  ): Promise<ExecResult>;
  /**
   * The public URL of a port of an instance, exposed or not; null where there is no public domain. Where neither options
   * nor environment name the domain it is known after the first call that asks Redis, `healthCheck` among them.
   */
  getPublicServiceUrl(port: number, hostId: string): string | null;
  /** Whether Redis, workers and PVE are there. Never throws. */
  healthCheck(): Promise<Health>;
  /** At once; nothing keeps the process alive after it, and operations go on. */
  close(): Promise<void>;
}

const INVENTORY_MS = 5_000;

/**
 * A client of the fleet behind REDIS_URL, or `options.redis`. Connects on first use, so it may be made anywhere.
 * Throws `not_configured`.
 */
export function createCmuxClient(options: CmuxClientOptions = {}): CmuxClient {
  const { env = process.env, waitMs, snapshots = options.snapshotResolver } = options;
  const fleet = createFleet(toOptions(options, env));
  const own = checkUrlSettings({
    publicDomain: options.publicDomain ?? (env["PVE_PUBLIC_DOMAIN"] || undefined),
    pattern: options.urlPattern ?? (env["PVE_URL_PATTERN"] || undefined),
  });
  let latest: { inventory: Inventory | null; at: number } | undefined;
  const readInventory = async () => {
    // A large cluster's takes milliseconds to parse, and workers write it every ten seconds.
    if (!latest?.inventory || performance.now() - latest.at > INVENTORY_MS)
      latest = { inventory: await fleet.inventory(), at: performance.now() };
    return latest.inventory;
  };
  const context: InstanceContext = {
    fleet,
    // The app embeds these URLs as they are.
    auth: options.auth ?? "none",
    done: async (asked) => (await asked).result({ timeoutMs: waitMs }),
    async load(id) {
      const [record, inventory] = await Promise.all([fleet.sandboxes.get(id), readInventory()]);
      return new CmuxInstance(context, record, { inventory });
    },
  };
  return {
    instances: {
      async start(asked) {
        const start = parseOrRefuse("start", Start, asked);
        return startInstance(context, start, await resolveTemplate(start, snapshots));
      },
      async get(query) {
        const [found, inventory] = await Promise.all([findSandbox(fleet, query), readInventory()]);
        const record = isProvisional(found.state) ? await onceMade(context, found) : found;
        return new CmuxInstance(context, record, { inventory, id: query.instanceId });
      },
      async list(filter = {}) {
        const [records, inventory] = await Promise.all([fleet.sandboxes.list(filter), readInventory()]);
        const made = records.filter(({ vmid }) => vmid !== undefined);
        return made.map((record) => new CmuxInstance(context, record, { inventory }));
      },
    },
    async createTemplateFromContainer(instanceId) {
      const { id } = await findSandbox(fleet, { instanceId });
      return saveTemplate(context, id);
    },
    deleteTemplate: (vmid) => deleteTemplate(context, vmid),
    listOrphanedTemplates: async () => listOrphans(context, { known: await listManifest(snapshots), now: Date.now() }),
    async execInContainer(vmid, command, { timeoutMs, instanceId } = {}) {
      const record = await findByVmid(fleet, vmid, instanceId);
      return execIn(context, record.id, command, timeoutMs);
    },
    getPublicServiceUrl(port, hostId) {
      const published = latest?.inventory?.urls;
      const publicDomain = own.publicDomain ?? published?.publicDomain;
      return toPublicUrl(port, hostId, {
        publicDomain,
        pattern: own.pattern ?? published?.pattern ?? DEFAULT_URL_PATTERN,
      });
    },
    async healthCheck() {
      const health = await fleet.health();
      if (health.redis.ok) await readInventory().catch(() => null); // told by the next one
      return health;
    },
    close: fleet.close,
    [Symbol.asyncDispose]: fleet.close,
  };
}

function toOptions(options: CmuxClientOptions, env: Readonly<Record<string, string | undefined>>): FleetOptions {
  const { redis, prefix, team, secretKey, requestTimeoutMs } = options;
  if (redis !== undefined) return { redis, prefix, team, secretKey, requestTimeoutMs };
  const known = toFleetOptions(env);
  return {
    ...known,
    prefix: prefix ?? known.prefix,
    team: team ?? known.team,
    secretKey: secretKey ?? known.secretKey,
    requestTimeoutMs,
  };
}

async function startInstance(
  context: InstanceContext,
  { instanceId, ttlSeconds, ttlAction = "stop", metadata = {}, team }: StartOptions,
  template: number | string,
): Promise<CmuxInstance> {
  const { fleet, auth } = context;
  const handle = await fleet.provision({
    template,
    services: CMUX_SERVICES.map((service) => ({ ...service, auth })),
    // Entries of `undefined` are what today's callers pass for what they do not know.
    metadata: Object.fromEntries(
      Object.entries(metadata).flatMap(([key, value]) => (value === undefined ? [] : [[key, value]])),
    ),
    ttlAction,
    ...(instanceId === undefined ? {} : { instanceId: toHostId(instanceId) }),
    ...(ttlSeconds === undefined ? {} : { ttlSeconds }),
    ...(team === undefined ? {} : { team }),
  });
  await made(context, Promise.resolve(handle));
  return context.load(handle.sandboxId);
}

/** As it is once it has been made. Throws why it was not. */
async function onceMade(context: InstanceContext, { id, operation }: SandboxRecord): Promise<SandboxRecord> {
  await made(context, context.fleet.operation(operation));
  return context.fleet.sandboxes.get(id);
}

/** The record of the operation that made an instance may be gone long before the instance. */
async function made({ done }: InstanceContext, asked: Parameters<InstanceContext["done"]>[0]): Promise<void> {
  await done(asked).catch((error: unknown) => {
    if (!(error instanceof FleetError) || error.code !== "operation_unknown") throw error;
  });
}

/** `instanceId`: whose container it is to be, since VMIDs are used again. */
async function findByVmid(fleet: Fleet, vmid: number, instanceId: string | undefined): Promise<SandboxRecord> {
  const record = await get(fleet, vmid);
  const names = [record?.id, record?.instanceId, record?.hostname];
  const isOther = instanceId !== undefined && !names.includes(instanceId) && !names.includes(toHostId(instanceId));
  if (record && !isGone(record.state) && !isOther) return record;
  const whose = instanceId === undefined ? "" : ` of instance ${instanceId}`;
  throw new FleetError("sandbox_not_found", `there is no container ${vmid}${whose}`, { facts: { vmid } });
}
