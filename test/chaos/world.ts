/** What a chaos run happens to: a durable Redis, a stand-in cluster, worker processes, and clients of several teams. */
import { randomBytes } from "node:crypto";
import { createFleet, type Fleet } from "../../producers/index.ts";
import { createQueues, type Queues } from "../../shared/queues.ts";
import { closeRedis, connectRedis, type RedisConnection } from "../../shared/redis/connect.ts";
import { createKeys, type Keys } from "../../shared/state/keys.ts";
import { createOperationStore, type OperationStore } from "../../shared/state/operations.ts";
import { type Pve, startPve } from "../pve/index.ts";
import { type RedisServer, startRedis } from "../redis.ts";
import { type SshNodes, startSshNodes } from "../ssh/nodes.ts";
import { type Crew, startCrew } from "./crew.ts";

const TEAMS = ["red", "green", "blue"] as const;
export const NODES = ["pve1", "pve2", "pve3"] as const;
export const NODE_SLOTS = 4;
export const VMIDS = { first: 20_000, last: 29_999 };
export const TEMPLATE = "cmux-base";

export interface World extends AsyncDisposable {
  readonly pve: Pve;
  /** None in a run without SSH. */
  readonly ssh: SshNodes | undefined;
  readonly redisServer: RedisServer;
  readonly redis: RedisConnection;
  readonly keys: Keys;
  readonly store: OperationStore;
  readonly queues: Queues;
  readonly crew: Crew;
  /** Of its workers. */
  readonly env: Readonly<Record<string, string>>;
  readonly teams: readonly [Fleet, ...Fleet[]];
  /** A client of all teams. */
  readonly operator: Fleet;
}

export interface WorldOptions {
  seed: number;
  workers: number;
  /** Whether the workers may log in to the nodes, which are sshds with the key guarded as in production. */
  ssh: boolean;
  logs: string | undefined;
}

export async function startWorld({ seed, workers, ssh: withSsh, logs }: WorldOptions): Promise<World> {
  await using stack = new AsyncDisposableStack();
  const redisServer = stack.use(await startRedis({ engine: "process" }));
  const templates = NODES.flatMap((node, at) =>
    [1, 2].map((copy) => ({ name: TEMPLATE, node, vmid: 9_000 + 10 * at + copy })),
  );
  const pve = stack.use(
    await startPve({ nodes: NODES.length, seed, templates, timings: { timeScale: 0.15, apiScale: 0.2 } }),
  );
  const ssh = withSsh ? stack.use(await startSshNodes(pve, { guard: VMIDS })) : undefined;
  const prefix = `{chaos-${randomBytes(4).toString("hex")}}`;
  const secretKey = randomBytes(32).toString("hex");
  const redis = stack.adopt(connectRedis(redisServer.url), closeRedis);
  redis.on("error", () => {}); // it is killed on purpose; commands wait for its return
  const queues = createQueues(redis, prefix);
  stack.defer(() => queues.close());
  const keys = createKeys(prefix);
  const env = {
    REDIS_URL: redisServer.urlFor("worker"),
    FLEET_PREFIX: prefix,
    FLEET_SECRET_KEY: secretKey,
    FLEET_ROLES: "worker",
    FLEET_NODE_SLOTS: String(NODE_SLOTS),
    PVE_API_URL: pve.url,
    PVE_API_TOKEN: pve.token,
    PVE_TLS_FINGERPRINT: pve.fingerprint,
    PVE_VMID_RANGE: `${VMIDS.first}-${VMIDS.last}`,
    PVE_PUBLIC_DOMAIN: "sandbox.test",
    SANDBOX_CIDRS: "127.0.0.0/8",
    FLEET_STRAY_GRACE_SECONDS: "3",
    FLEET_ORPHAN_GRACE_HOURS: "0",
    ...ssh?.env,
    LOG_LEVEL: logs === undefined ? "warn" : "debug",
  };
  const crew = stack.use(startCrew({ workers, env, logs }));
  const client = (team?: string) =>
    stack.use(createFleet({ redis: redisServer.urlFor("producer"), prefix, secretKey, ...(team ? { team } : {}) }));
  const [first, ...others] = TEAMS;
  const teams: [Fleet, ...Fleet[]] = [client(first), ...others.map(client)];
  const operator = client();
  const store = createOperationStore(redis, keys, { retentionSec: 86_400 });
  const resources = stack.move();
  return {
    pve,
    ssh,
    redisServer,
    redis,
    keys,
    store,
    queues,
    crew,
    env,
    teams,
    operator,
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}
