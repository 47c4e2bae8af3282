/** A real Redis with a fleet client on it; the worker's side is played through the store, as a worker would write. */
import { randomBytes } from "node:crypto";
import { expect, vi } from "vitest";
import { createFleet, type Fleet, type FleetOptions } from "../../../producers/index.ts";
import type { FleetError } from "../../../shared/errors.ts";
import { NodeName, newFence, type OperationId, SandboxId, Vmid } from "../../../shared/ids.ts";
import type { JobInput } from "../../../shared/jobs/index.ts";
import { createQueues, type Queues } from "../../../shared/queues.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../../shared/redis/connect.ts";
import { newestCursor } from "../../../shared/state/events.ts";
import { createKeys, type Keys } from "../../../shared/state/keys.ts";
import {
  createOperationStore,
  type OperationEnd,
  type OperationStore,
  type Writer,
} from "../../../shared/state/operations.ts";
import type { RedisServer } from "../../redis.ts";

export const SECRET_KEY = "5a".repeat(32);

export interface Rig extends AsyncDisposable {
  redis: RedisConnection;
  prefix: string;
  keys: Keys;
  store: OperationStore;
  queues: Queues;
  fleet: Fleet;
  /** Another client of the same fleet; closed with the rig. */
  client(options?: Partial<FleetOptions>): Fleet;
  /** Claims an operation as a run does, for a test that plays the worker. */
  claim(id: OperationId): Promise<Writer>;
  succeed(id: OperationId, result: unknown): Promise<void>;
  fail(id: OperationId, error: FleetError): Promise<void>;
  /** Writes events as a newer version would. */
  emit(count: number, ...fields: string[]): Promise<void>;
  /** A sandbox that runs on node pve1, as after a provision. */
  running(input?: Partial<JobInput<"provision">>, of?: Fleet): Promise<SandboxId>;
  /** Connections to the server besides the rig's own. */
  connections(): Promise<Connection[]>;
  /** Resolves once that many clients wait for events. */
  readers(count: number): Promise<Connection[]>;
}

export interface Connection {
  id: string;
  command: string;
  /** For events or messages. */
  listens: boolean;
}

export function createRig(server: RedisServer): Rig {
  const prefix = `{t${randomBytes(6).toString("hex")}}`;
  const redis = connectRedis(server.url);
  redis.on("error", () => {}); // a test may kill the server
  const keys = createKeys(prefix);
  const store = createOperationStore(redis, keys, { retentionSec: 60 });
  const queues = createQueues(redis, prefix);
  redis.hset(keys.pulse, "at", Date.now() + 3_600_000).catch(() => {}); // the worker that a test plays is there
  const clients: Fleet[] = [];
  const client = (options: Partial<FleetOptions> = {}) => {
    const fleet = createFleet({ redis: server.urlFor("producer"), prefix, secretKey: SECRET_KEY, ...options });
    clients.push(fleet);
    return fleet;
  };
  const fleet = client();
  const connections = () => listConnections(redis);
  return {
    redis,
    prefix,
    keys,
    store,
    queues,
    fleet,
    client,
    claim: (id) => claim(store, id),
    succeed: (id, result) => end(store, id, { status: "succeeded", result }),
    fail: (id, error) => end(store, id, { status: error.code === "canceled" ? "canceled" : "failed", error }),
    async emit(count, ...fields) {
      const [ms = 0, number = 0] = (await newestCursor(redis, keys)).split("-").map(Number);
      const pipeline = redis.pipeline();
      for (let n = 1; n <= count; n++)
        pipeline.xadd(keys.events, `${Math.max(ms, Date.now())}-${number + n}`, ...fields);
      await pipeline.exec();
    },
    running: (input = {}, of = fleet) => makeRunning(store, of, input),
    connections,
    readers: (count) =>
      vi.waitFor(
        async () => {
          const readers = (await connections()).filter(({ listens }) => listens);
          expect(readers).toHaveLength(count);
          return readers;
        },
        { interval: 5, timeout: 30_000 },
      ),
    async [Symbol.asyncDispose]() {
      await Promise.all(clients.map((one) => one.close()));
      await queues.close();
      await closeRedis(redis);
    },
  };
}

async function end(store: OperationStore, id: OperationId, how: OperationEnd): Promise<void> {
  await store.end(await claim(store, id), how);
}

async function claim(store: OperationStore, id: OperationId): Promise<Writer> {
  const claimed = await store.claim(id, newFence());
  if (claimed.outcome !== "claimed") throw new Error(`could not claim ${id}: ${claimed.outcome}`);
  return claimed.writer;
}

async function makeRunning(
  store: OperationStore,
  fleet: Fleet,
  input: Partial<JobInput<"provision">>,
): Promise<SandboxId> {
  const { id, sandboxId } = await fleet.provision({ template: "base", ...input });
  const writer = await claim(store, id);
  const vmid = await store.leaseVmid(writer, { first: 20_000, last: 29_999 });
  const sandbox = { state: "running" as const, node: NodeName.parse("pve1"), hostname: `cmux-${vmid}` };
  await store.end(writer, { status: "succeeded", result: toProvisioned(id, sandboxId, vmid) }, { sandbox });
  return sandboxId;
}

export function toProvisioned(operationId: string, sandboxId: string, vmid = 20_000) {
  return {
    sandboxId: SandboxId.parse(sandboxId),
    operationId,
    node: "pve1",
    vmid: Vmid.parse(vmid),
    hostname: `cmux-${vmid}`,
    address: "10.0.0.5",
    services: [],
    warm: false,
    timings: { clone: 300, start: 1500 },
  };
}

async function listConnections(redis: RedisConnection): Promise<Connection[]> {
  const own = String(await redis.client("ID"));
  const text = String(await redis.client("LIST"));
  return text
    .split("\n")
    .filter(Boolean)
    .map((line) => ({
      id: /\bid=(\d+)/.exec(line)?.[1] ?? "",
      command: /\bcmd=(\S+)/.exec(line)?.[1] ?? "",
      listens: /\bflags=\w*[bP]/.test(line),
    }))
    .filter(({ id }) => id !== own);
}

/** What a promise fails with; handled from the start, unlike `expect(…).rejects` that is awaited later. */
export const caught = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => new Error("it did not fail"),
    (error: unknown) => error,
  );
