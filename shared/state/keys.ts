/** Every Redis key of ours. All carry the prefix's hash tag, so one script may touch them on a cluster too. */
export interface Keys {
  readonly prefix: string;
  readonly open: string;
  readonly events: string;
  readonly sandboxes: string;
  readonly aborting: string;
  readonly vmids: string;
  /** Sorted set of VMIDs that sandboxes had, by when they were given back. */
  readonly vmidsFreed: string;
  readonly ips: string;
  /** Addresses of the fleet's own processes, with when they were told last: see `workers/own-machines.ts`. */
  readonly machines: string;
  readonly addresses: string;
  /** Sandboxes with a TTL by when it is over, and by when `sandbox.expiring` tells of that. */
  readonly expiries: string;
  readonly expiring: string;
  /** Snapshots by when they are to go. */
  readonly snapshotExpiries: string;
  /** Hash of what of the workers' configuration is decided in Redis: see `ttl.ts`. */
  readonly limits: string;
  /** Hash of what is there for a branch alone, a snapshot's or template's id, and of which batch that is. */
  readonly branches: string;
  /** Templates that newer ones have taken the place of: they go once nothing is linked to them. */
  readonly retired: string;
  /** Hash of replicas of templates that the fleet made, by sandbox id; and when each was last cloned, by VMID. */
  readonly replicas: string;
  readonly replicaUses: string;
  /** The operation that makes a replica of a template by demand; nobody asks for another meanwhile. */
  replicaWish(vmid: number): string;
  /** Running sandboxes with `idleSeconds`, by when to look whether they are idle. */
  readonly idle: string;
  /** Hash of when each of these was last used, as far as it is written down; open exchanges and operations are not. */
  readonly uses: string;
  /** Sandboxes that live, by the names that their callers gave. Of all teams: the names are in URLs. */
  readonly instances: string;
  readonly inventory: string;
  /** Nodes whose running tasks hold their slots, each with the id of the Redis server that knows it. */
  readonly adopted: string;
  /** When a worker last wrote (`at`), to which server. */
  readonly pulse: string;
  /** From when to when Redis may have lost writes. */
  readonly losses: string;
  /** An id that the first worker made up: the same for as long as Redis keeps its data. */
  readonly origin: string;
  /** VMIDs of containers that no record owns, and what is known of them: see `Quarantined`. */
  readonly strays: string;
  /**
   * Sandboxes whose stamp in PVE is to follow their record: whoever changes services, TTL, metadata, team, instance id,
   * idle or wake settings adds it in the same step. `restamping`: those that are being written just now.
   */
  readonly restamp: string;
  readonly restamping: string;
  /** Hash by VMID: locks that PVE's list shows, and since when; see `locks.ts`. */
  readonly locks: string;
  /** Hash: when each node was started (ms since the epoch), as the last round of the reconcile saw it. */
  readonly boots: string;
  /** Hash: when a round last saw each node online; negative: it was seen to be away since. */
  readonly nodesSeen: string;
  /** Sandboxes that ran when their node went down, and are to be started again. */
  readonly restarts: string;
  /** Sorted set: sandboxes that somebody else stopped, or their node before it went down, by when. See `boots.ts`. */
  readonly halted: string;
  /** Names of all nodes that have queues: those of the cluster, and those that left it until they are cleared. */
  readonly nodes: string;
  /** Sorted set: nodes that operators said are no more, by when; see `clear-nodes.ts`. */
  readonly nodesForgotten: string;
  /** Hash: limits of a team, or of `*`. */
  readonly quotas: string;
  /** Teams of which operations wait for a quota. */
  readonly quotaWaiting: string;
  /** Teams that have, or lately had, something that counts for a quota. */
  readonly teams: string;
  /** Pub/sub channel that wakes whoever waits for a slot, a cancel or a place. */
  readonly wake: string;
  /** Pub/sub channel of all ends, for those that wait for one. */
  readonly ends: string;
  /** Pub/sub channel of one process that waits for ends of what it asked for: they tell it what they were. */
  told(listener: string): string;
  /** Ids of all batches that are kept, by when they were opened. */
  readonly batches: string;
  /** Batches that may still be added to, by when that was done last. */
  readonly batchesOpen: string;
  /** Batches whose items are to end. */
  readonly batchesStopping: string;
  operation(id: string): string;
  /** A batch's record with its counts. */
  batch(id: string): string;
  /** Operation ids by index; `!` and a hash for one that became none. */
  batchItems(id: string): string;
  /** Operations of a batch that have not ended. */
  batchLive(id: string): string;
  /** Its ended items in the order of their ends: see `batches.ts`. */
  batchEnds(id: string): string;
  /** Errors of items that became no operation, by index. */
  batchRejected(id: string): string;
  /** Sandboxes that the undo of a batch has yet to destroy, by when that is asked for (again). */
  batchUndo(id: string): string;
  /** Live output of an operation, see `output.ts`; also the pub/sub channel that tells of more. */
  output(operation: string): string;
  /** What is typed into a shell, see `shell-input.ts`; also the pub/sub channel that tells of more. */
  shellInput(operation: string): string;
  /** Events that a consumer group gave up. */
  deadEvents(group: string): string;
  /** Hash: when a consumer of each group last asked for an event, to the hour; ms, the server's clock. */
  readonly groupUses: string;
  sandbox(id: string): string;
  /** Operations that use a sandbox just now; ids of removed ones may stay. */
  users(sandbox: string): string;
  /** Operations that change a sandbox, in their order. */
  changes(sandbox: string): string;
  teamSandboxes(team: string): string;
  snapshot(id: string): string;
  /** A team's templates that the fleet made, by sandbox id; see `templates.ts`. */
  templates(team: string): string;
  /** Ids of the snapshots taken of a sandbox. */
  sandboxSnapshots(sandbox: string): string;
  secret(owner: string): string;
  /** What an upload brings or a download has fetched; `contents` and `contentBytes` are about all of them: see `contents.ts`. */
  content(operation: string): string;
  readonly contents: string;
  readonly contentBytes: string;
  slot(name: string): string;
  slotQueue(name: string): string;
  /** Names of the slots that an operation holds. */
  held(operation: string): string;
  reserved(node: string): string;
  /** Hash: how often the reservations of a node have changed. */
  readonly reservedChanges: string;
  /** Hashes by node: see `nodes.ts`. */
  readonly cordons: string;
  readonly breakers: string;
  readonly nodeSettings: string;
  /** Hash of pools by template: see `pools.ts`. */
  readonly pools: string;
  /** Hash: members whose stamp names a sandbox of which Redis has lost that it claimed them, by that sandbox. */
  readonly poolsOwned: string;
  /** Members that a provision may claim, by when they were last seen ready (ms, the server's clock). */
  poolReady(template: string): string;
  /** Hash of counts. */
  poolCounts(template: string): string;
  /** Hash of API keys by id: see `api-keys.ts`. */
  readonly apiKeys: string;
  /** Ids of what operators asked of the clockwork, oldest first: see `errands.ts`. */
  readonly errands: string;
  errand(id: string): string;
  /** Hash of webhook targets by name: see `webhooks.ts`. */
  readonly webhooks: string;
}

export function createKeys(prefix: string): Keys {
  const key = (...parts: string[]) => [prefix, ...parts].join(":");
  return {
    prefix,
    open: key("open"),
    events: key("events"),
    sandboxes: key("sandboxes"),
    aborting: key("aborting"),
    vmids: key("vmids"),
    vmidsFreed: key("vmids-freed"),
    ips: key("ips"),
    machines: key("machines"),
    addresses: key("addresses"),
    expiries: key("expiries"),
    snapshotExpiries: key("snapshot-expiries"),
    expiring: key("expiring"),
    limits: key("limits"),
    branches: key("branches"),
    retired: key("retired"),
    replicas: key("replicas"),
    replicaUses: key("replica-uses"),
    replicaWish: (vmid) => key(`replica-wish:${vmid}`),
    idle: key("idle"),
    uses: key("uses"),
    instances: key("instances"),
    inventory: key("inventory"),
    adopted: key("adopted"),
    pulse: key("pulse"),
    losses: key("losses"),
    origin: key("origin"),
    strays: key("strays"),
    restamp: key("restamp"),
    restamping: key("restamping"),
    locks: key("locks"),
    boots: key("boots"),
    nodesSeen: key("nodes-seen"),
    restarts: key("restarts"),
    halted: key("halted"),
    nodes: key("nodes"),
    nodesForgotten: key("nodes-forgotten"),
    quotas: key("quotas"),
    quotaWaiting: key("quota-waiting"),
    teams: key("teams"),
    wake: key("wake"),
    ends: key("ends"),
    told: (listener) => key(`told:${listener}`),
    batches: key("batches"),
    batchesOpen: key("batches-open"),
    batchesStopping: key("batches-stopping"),
    operation: (id) => key("op", id),
    batch: (id) => key("batch", id),
    batchItems: (id) => key("batch-items", id),
    batchLive: (id) => key("batch-live", id),
    batchEnds: (id) => key("batch-ends", id),
    batchRejected: (id) => key("batch-rejected", id),
    batchUndo: (id) => key("batch-undo", id),
    output: (operation) => key("output", operation),
    shellInput: (operation) => key("shell-input", operation),
    deadEvents: (group) => key("dead-events", group),
    groupUses: key("group-uses"),
    sandbox: (id) => key("sbx", id),
    users: (sandbox) => key("users", sandbox),
    changes: (sandbox) => key("changes", sandbox),
    teamSandboxes: (team) => key("team", team),
    snapshot: (id) => key("snap", id),
    templates: (team) => key("templates", team),
    sandboxSnapshots: (sandbox) => key("snaps-of", sandbox),
    secret: (owner) => key("secret", owner),
    content: (operation) => key("content", operation),
    contents: key("contents"),
    contentBytes: key("content-bytes"),
    slot: (name) => key("slot", name),
    slotQueue: (name) => key("slot-queue", name),
    held: (operation) => key("held", operation),
    reserved: (node) => key("reserved", node),
    reservedChanges: key("reserved-changes"),
    cordons: key("cordons"),
    breakers: key("breakers"),
    nodeSettings: key("node-settings"),
    pools: key("pools"),
    poolsOwned: key("pools-owned"),
    poolReady: (template) => key("pool-ready", template),
    poolCounts: (template) => key("pool-counts", template),
    apiKeys: key("api-keys"),
    errands: key("errands"),
    errand: (id) => key("errand", id),
    webhooks: key("webhooks"),
  };
}
