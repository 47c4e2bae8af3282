/**
 * Which service a host name means, from memory: looked up in Redis once, forgotten when an event tells of its sandbox.
 * While events can't be read nothing is remembered, so that what is hidden or gone never answers from a stale note.
 */
import type { Logger } from "pino";
import { z } from "zod";
import { OperationId, SandboxId } from "../../shared/ids.ts";
import type { ExposedService } from "../../shared/jobs/fields.ts";
import { closeRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { newestCursor, readEvents } from "../../shared/state/events.ts";
import type { Keys } from "../../shared/state/keys.ts";
import type { OperationStore } from "../../shared/state/operations.ts";
import { isGone, isProvisional, type SandboxRecord } from "../../shared/state/records.ts";
import { createHostParser, type HostParts } from "../../shared/url-pattern.ts";
import type { OwnMachines } from "../own-machines.ts";
import { inTime } from "./in-time.ts";

/** A service with what decides about a request to it. */
export interface Route {
  sandbox: SandboxRecord;
  service: ExposedService;
  /** Where it listens; absent while the sandbox sleeps, or while its address is not certain to be its own. */
  address?: string;
  /** An operation is putting it to sleep; told of those only that a request would wake. */
  leaving: boolean;
}

/** Where its service listens, as ADDRESS:PORT. */
export const upstreamOf = ({ address = "", service }: Route): string =>
  `${address.includes(":") ? `[${address}]` : address}:${service.port}`;

export interface Registry extends AsyncDisposable {
  /** By a host name in lower case, without port. Null: no service has it. */
  find(host: string): Promise<Route | null>;
  /** Whether the pattern could give such a name. */
  isOurs(host: string): boolean;
  /** What it remembers of a sandbox, somebody has found out of date. */
  forget(sandbox: string): void;
  /** Hears of each sandbox whose routes may have changed; they are forgotten already. */
  onChange(listener: (sandbox: string) => void): () => void;
}

export interface RegistryOptions {
  redis: RedisConnection;
  /** Becomes the registry's own. */
  blocking: RedisConnection;
  keys: Keys;
  store: OperationStore;
  machines: OwnMachines;
  pattern: string;
  domain: string;
  log: Logger;
}

/** Host names remembered; guesses at names must not fill the memory. */
const REMEMBERED = 20_000;
/** A host without a sandbox has no event that would tell of a change. */
const UNKNOWN_MS = 500;
/** Nor has the begin of an operation that is to put the sandbox to sleep. */
const LEAVING_MS = 50;
const BLOCK_MS = 2_000;
/** Events that are not answered for so long are not read: its connection is dead, and nobody has said so. */
const SILENT_MS = 4_000;
const AGAIN_MS = 200;

interface Found {
  sandbox: SandboxId | null;
  route: Route | null;
  /** To be looked at again soon. */
  mayLeave?: boolean;
}

interface Entry {
  route: Promise<Route | null>;
  /** ms of the monotonic clock; endless where events tell. */
  until: number;
  /** While it is read: the generation that it began in; no event can take it back before it is there. */
  reading: number | null;
}

export function startRegistry(options: RegistryOptions): Registry {
  const { redis, blocking, keys, store, machines, pattern, domain, log } = options;
  const parse = createHostParser(pattern, domain);
  const entries = new Map<string, Entry>();
  const hostsOf = new Map<string, Set<string>>();
  const listeners = new Set<(sandbox: string) => void>();
  const closing = new AbortController();
  let follows = false;
  let generation = 0;

  const forgetAll = () => {
    generation++;
    entries.clear();
    hostsOf.clear();
  };
  const forget = (sandbox: string) => {
    generation++;
    for (const host of hostsOf.get(sandbox) ?? []) entries.delete(host);
    hostsOf.delete(sandbox);
    for (const listener of listeners) listener(sandbox);
  };

  const lookUp = async (host: string): Promise<Found> => {
    const parts = parse(host);
    const sandbox = parts && (await sandboxOf(redis, keys, parts));
    if (!parts || !sandbox) return { sandbox: null, route: null };
    return { sandbox, ...(await toRoute({ redis, keys, store, machines }, sandbox, parts)) };
  };

  const find: Registry["find"] = async (host) => {
    const known = entries.get(host);
    if (known && known.until > performance.now() && (known.reading ?? generation) === generation) return known.route;
    if (parse(host) === null) return null;
    if (!follows) return (await inTime(lookUp(host))).route;
    const begun = generation;
    const asked = inTime(lookUp(host));
    const route = asked.then((found) => found.route);
    route.catch(() => {}); // whoever began it hears of `asked`
    const entry: Entry = { route, until: Number.POSITIVE_INFINITY, reading: begun };
    const drop = () => entries.get(host) === entry && entries.delete(host);
    if (entries.size >= REMEMBERED) forgetAll();
    entries.set(host, entry);
    try {
      const { sandbox, mayLeave } = await asked;
      entry.reading = null;
      // An event since may have told of what was being read.
      if (begun !== generation) drop();
      else if (sandbox === null) entry.until = performance.now() + UNKNOWN_MS;
      else hostsOf.set(sandbox, (hostsOf.get(sandbox) ?? new Set()).add(host));
      if (mayLeave) entry.until = performance.now() + LEAVING_MS;
    } catch (error) {
      drop();
      throw error;
    }
    return route;
  };

  const follow = async () => {
    let after: string | undefined;
    const disconnected = () => {
      follows = false;
      forgetAll();
    };
    blocking.on("close", disconnected);
    while (!closing.signal.aborted) {
      const watchdog = setInterval(() => {
        disconnected();
        if (blocking.status === "ready") blocking.disconnect(true); // the read is sent again on the next one
      }, SILENT_MS);
      try {
        after ??= await newestCursor(blocking, keys);
        if (!follows) forgetAll();
        follows = true;
        const { events, cursor } = await readEvents(blocking, keys, after, BLOCK_MS);
        for (const { sandbox } of events) forget(sandbox);
        after = cursor;
      } catch (error) {
        disconnected();
        after = undefined;
        if (closing.signal.aborted) return;
        log.debug({ err: error }, "the gate can't read events; it looks every service up");
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      } finally {
        clearInterval(watchdog);
      }
    }
  };
  const followed = follow();
  return {
    find,
    isOurs: (host) => parse(host) !== null,
    forget,
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      await closeRedis(blocking);
      await Promise.race([followed, new Promise((resolve) => setTimeout(resolve, AGAIN_MS))]);
    },
  };
}

async function sandboxOf(redis: RedisConnection, keys: Keys, parts: HostParts): Promise<SandboxId | null> {
  const own = SandboxId.safeParse(parts.label?.replace(/^sbx-/, "sbx_"));
  if (own.success) return own.data;
  const { vmid, label = "" } = parts;
  const text = await (vmid === undefined ? redis.hget(keys.instances, label) : redis.hget(keys.vmids, String(vmid)));
  return SandboxId.safeParse(text).data ?? null;
}

async function toRoute(
  from: Pick<RegistryOptions, "redis" | "keys" | "store" | "machines">,
  id: SandboxId,
  parts: HostParts,
): Promise<Omit<Found, "sandbox">> {
  const { redis, keys, store, machines } = from;
  const none = { route: null };
  const sandbox = await store.loadSandbox(id);
  if (!sandbox || isGone(sandbox.state) || isProvisional(sandbox.state) || sandbox.state === "destroying") return none;
  if (parts.vmid !== undefined && sandbox.vmid !== parts.vmid) return none;
  const service = sandbox.services.find(
    ({ name, port }) => (parts.service ?? name) === name && (parts.port ?? port) === port,
  );
  if (service?.level !== "public") return none;
  const { address, state } = sandbox;
  const sleep = sandbox.wakeOnHttp && state === "running" ? await nextSleep(from, id) : null;
  const about = { sandbox, service, leaving: sleep === "running" };
  // A guest may give itself any address: only the one that was claimed for this sandbox is connected to.
  const isUsable = state === "running" && address !== undefined && !machines.has(address);
  const own = isUsable && (await redis.hget(keys.addresses, address)) === id;
  return { route: own ? { ...about, address } : about, mayLeave: sleep !== null };
}

/** How far the operation is that is about to put the sandbox to sleep; null: there is none, or another comes first. */
async function nextSleep(
  { redis, keys, store }: Pick<RegistryOptions, "redis" | "keys" | "store">,
  sandbox: SandboxId,
): Promise<"queued" | "running" | null> {
  const head = OperationId.safeParse(await redis.lindex(keys.changes(sandbox), 0));
  const operation = head.success ? await store.load(head.data) : null;
  if (operation?.kind !== "power" || (operation.status !== "queued" && operation.status !== "running")) return null;
  const sleeps = Sleep.safeParse(operation.input).success;
  return sleeps ? operation.status : null;
}

const Sleep = z.object({ action: z.enum(["pause", "stop", "shutdown"]) });
