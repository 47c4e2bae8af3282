/** The nodes of the cluster as the fleet sees them, and taking them out of use. */
import { setTimeout as pause } from "node:timers/promises";
import { z } from "zod";
import { FleetError, toFleetError } from "../shared/errors.ts";
import { NodeName, POOL_TEAM, type SandboxId } from "../shared/ids.ts";
import { parseOrRefuse } from "../shared/jobs/problems.ts";
import { execQueue, nodeQueue } from "../shared/queues.ts";
import type { Finding } from "../shared/state/errands.ts";
import { loadInventory, type NodeInventory } from "../shared/state/inventory.ts";
import { type Breaker, type Cordon, NodeSettings } from "../shared/state/nodes.ts";
import type { SandboxRecord } from "../shared/state/records.ts";
import { slotOf } from "../shared/state/slots.ts";
import { loadLoads } from "./capacity.ts";
import { type ErrandOptions, runErrand } from "./errands.ts";
import type { Parts } from "./parts.ts";
import type { Sandboxes } from "./sandboxes.ts";

export interface QueueCounts {
  active: number;
  /** Ready to run, and those that try again later. */
  waiting: number;
  delayed: number;
}

export interface NodeView extends NodeInventory {
  /** Who keeps new sandboxes away from it, since when and why. */
  cordon: Cordon | undefined;
  /** `open` and `half_open`: it does not answer, and gets no request but a probe. */
  breaker: Breaker["state"];
  /** What operators have set for it; empty where nothing. */
  settings: NodeSettings;
  /** Sandboxes of ours on it and on their way there; templates do not count. */
  sandboxes: number;
  /** Slots that are taken: heavy PVE operations that run now. */
  slotsTaken: number;
  queues: { node: QueueCounts; exec: QueueCounts };
}

export type NodeChanges = { readonly [N in keyof NodeSettings]?: NodeSettings[N] | null };

export interface CordonOptions {
  /** Who does it, for people. */
  by: string;
  reason?: string | undefined;
}

/** What keeps a node from being empty. */
export interface NodeRest {
  /** Sandboxes that have, or may have, a container on it; members of pools, too. */
  sandboxes: SandboxRecord[];
  /** Operations that run there or wait for it, commands included. */
  operations: number;
}

export interface DrainOptions extends CordonOptions {
  /** Moves what lives there to other nodes instead of waiting for its end: each is shut down for it. */
  migrate?: boolean | undefined;
  /** Destroys what lives there instead of waiting for its end; with `migrate` what can't be moved. */
  destroy?: boolean | undefined;
  /** Called with what is left, at first and whenever it has changed. */
  onProgress?: ((rest: NodeRest) => void) | undefined;
  /** Longest wait in ms; forever when absent. */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Only for clients of all teams: each throws `forbidden` in a client of one, and `invalid_input` for a node that there is not. */
export interface Nodes {
  /** Empty before any worker has written what it found. Clients of one team may look, too. */
  list(): Promise<NodeView[]>;
  /**
   * Nothing new is placed on the node, and no template of it is cloned, until it is uncordoned; what waits for it there
   * is placed again. What has begun goes on, and so do all other operations. False: it was cordoned before; who, when and
   * why are written anew.
   */
  cordon(node: string, options: CordonOptions): Promise<boolean>;
  /** False: it was not cordoned. */
  uncordon(node: string): Promise<boolean>;
  /**
   * Changes what `settings` names, for placements from now on; null takes one back. Returns all that is set. `labels` are
   * all that it is to have. Throws `invalid_input`.
   */
  set(node: string, settings: NodeChanges): Promise<NodeSettings>;
  /** What is on the node now. */
  rest(node: string): Promise<NodeRest>;
  /**
   * For a node that will never be back: its sandboxes end as `lost`, and what they held is free. Throws `invalid_input` while
   * the cluster counts it as online. Resolves with what was ended, and what an operation still works on.
   */
  forget(node: string, options?: ErrandOptions): Promise<Finding[]>;
  /**
   * Cordons the node and resolves once it is empty: no sandbox lives there and no operation runs. Those that live there end
   * by themselves, by their TTL, or go with `migrate` or `destroy`.
   * Throws `timeout` when `timeoutMs` passed first, what a move or destroy failed with once nothing else is left (both with
   * `facts.sandboxes`, those still there), and `signal`'s reason; it stays cordoned then.
   */
  drain(node: string, options: DrainOptions): Promise<void>;
}

const Changes = z
  .strictObject({
    labels: NodeSettings.shape.labels.nullable(),
    maxSandboxes: NodeSettings.shape.maxSandboxes.nullable(),
    memoryOvercommit: NodeSettings.shape.memoryOvercommit.nullable(),
    diskOvercommit: NodeSettings.shape.diskOvercommit.nullable(),
  })
  .partial();

/** Between two looks at a node that is being drained; a look that takes long comes less often. */
const LOOK_MS = 500;

/** So many sandboxes are moved at once: each takes a slot of two nodes, and their disks a network. */
const MOVES_AT_ONCE = 8;

/** Ways to end a sandbox's stay on a node; each resolves once it has. */
export interface Removals {
  destroy: (sandboxId: SandboxId) => Promise<unknown>;
  migrate: (sandboxId: SandboxId) => Promise<unknown>;
}

export function createNodes(parts: Parts, sandboxes: Sandboxes, removals: Removals): Nodes {
  const rest = (node: string) => loadRest(parts, sandboxes, node);
  const cordon: Nodes["cordon"] = async (node, { by, reason }) => {
    await assertOperator(parts, node);
    const flag = { at: parts.now(), by, ...(reason === undefined ? {} : { reason }) };
    return (await parts.link.request(() => parts.nodeStates.setCordon(node, flag))) === null;
  };
  return {
    list: () => loadNodes(parts),
    cordon,
    async uncordon(node) {
      await assertOperator(parts, node);
      return (await parts.link.request(() => parts.nodeStates.setCordon(node, null))) !== null;
    },
    async set(node, changes) {
      const asked = parseOrRefuse("settings", Changes, changes);
      await assertOperator(parts, node);
      const merge = (before: NodeSettings | null) => {
        const all = Object.entries({ ...before, ...asked }).filter(
          ([, value]) => value !== null && value !== undefined,
        );
        return all.length === 0 ? null : NodeSettings.parse(Object.fromEntries(all));
      };
      return (await parts.link.request(() => parts.nodeStates.changeSettings(node, merge))) ?? {};
    },
    async rest(node) {
      await assertOperator(parts, node);
      return rest(node);
    },
    async forget(node, options = {}) {
      await assertOperator(parts, node);
      return runErrand(parts, { kind: "forget", node: NodeName.parse(node) }, options);
    },
    async drain(node, options) {
      await cordon(node, options);
      await drain(node, { look: () => rest(node), ...removals }, options);
    },
  };
}

interface Drain extends Removals {
  look: () => Promise<NodeRest>;
}

async function drain(node: string, { look, destroy, migrate }: Drain, options: DrainOptions): Promise<void> {
  const { onProgress, timeoutMs = Number.POSITIVE_INFINITY, signal } = options;
  const begun = performance.now();
  const remove = async (id: SandboxId) => {
    if (options.migrate !== true) return destroy(id);
    try {
      return await migrate(id);
    } catch (error) {
      if (options.destroy !== true) throw error;
      return destroy(id);
    }
  };
  const atOnce = options.migrate === true ? MOVES_AT_ONCE : Number.POSITIVE_INFINITY;
  /** What became of each that was asked to leave; undefined while it is under way. */
  const removed = new Map<string, { error: unknown } | undefined>();
  let told = "";
  while (true) {
    signal?.throwIfAborted();
    const lookedAt = performance.now();
    const left = await look();
    const state = `${left.operations} ${left.sandboxes.map((one) => `${one.id} ${one.state}`).join()}`;
    if (state !== told) onProgress?.(left);
    told = state;
    if (left.sandboxes.length === 0 && left.operations === 0) return;
    const isAsked = options.destroy === true || options.migrate === true;
    let under = left.sandboxes.filter(({ id }) => removed.has(id) && removed.get(id) === undefined).length;
    for (const { id, team, state: at } of isAsked ? left.sandboxes : []) {
      // What is only on its way there turns back by itself, and members of pools leave a cordoned node.
      if (at === "placing" || team === POOL_TEAM || removed.has(id) || under >= atOnce) continue;
      under += 1;
      removed.set(id, undefined);
      remove(id).catch((error: unknown) => removed.set(id, { error }));
    }
    const failures = left.sandboxes.map(({ id }) => removed.get(id));
    if (left.operations === 0 && failures.every((one) => one !== undefined)) throw unremoved(node, left, failures);
    if (performance.now() - begun > timeoutMs) throw stillThere(node, left, timeoutMs);
    await pause(Math.max(LOOK_MS, 5 * (performance.now() - lookedAt)), undefined, { signal }).catch(() => {});
  }
}

function unremoved(node: string, { sandboxes }: NodeRest, failures: readonly ({ error: unknown } | undefined)[]) {
  const error = toFleetError(failures[0]?.error);
  return error.with({ node, sandboxes: sandboxes.map(({ id }) => id) });
}

function stillThere(node: string, { sandboxes, operations }: NodeRest, timeoutMs: number): FleetError {
  const text = `${node} is cordoned, and not empty after ${timeoutMs} ms: ${sandboxes.length} sandboxes, ${operations} operations`;
  return new FleetError("timeout", text, { facts: { node, sandboxes: sandboxes.map(({ id }) => id), operations } });
}

/** A node that has left the cluster may still be uncordoned. */
async function assertOperator({ link, keys, nodeStates, team }: Parts, node: string): Promise<void> {
  if (team !== undefined) {
    throw new FleetError("forbidden", `nodes are for all teams: leave the team ${team} (FLEET_TEAM) out for this`, {
      facts: { team },
    });
  }
  const [inventory, { cordons }] = await Promise.all([
    link.request((redis) => loadInventory(redis, keys)),
    link.request(() => nodeStates.load()),
  ]);
  const known = [...new Set([...(inventory?.nodes ?? []).map(({ name }) => String(name)), ...cordons.keys()])];
  if (known.includes(node)) return;
  const which = known.length === 0 ? "no worker has told of any yet" : `nodes are ${known.join(", ")}`;
  throw new FleetError("invalid_input", `node: there is no node ${node}; ${which}`, {
    facts: { fields: ["node"], nodes: known },
  });
}

async function loadRest(parts: Parts, sandboxes: Sandboxes, node: string): Promise<NodeRest> {
  // It may be there: a node is not said to be empty of what can't be read.
  const onUnreadable = (error: FleetError) => {
    throw error;
  };
  const [all, members, ofNode, exec] = await Promise.all([
    sandboxes.list({}, { onUnreadable }),
    sandboxes.list({ team: POOL_TEAM }, { onUnreadable }),
    countJobs(parts, nodeQueue(node)),
    countJobs(parts, execQueue(node)),
  ]);
  const count = ({ active, waiting, delayed }: QueueCounts) => active + waiting + delayed;
  return {
    sandboxes: [...all, ...members].filter((one) => one.node === node),
    operations: count(ofNode) + count(exec),
  };
}

async function loadNodes(parts: Parts): Promise<NodeView[]> {
  const [inventory, { cordons, breakers, settings }] = await Promise.all([
    parts.link.request((redis) => loadInventory(redis, parts.keys)),
    parts.link.request(() => parts.nodeStates.load()),
  ]);
  const nodes = inventory?.nodes ?? [];
  const loads = await loadLoads(
    parts,
    nodes.map(({ name }) => name),
  );
  const taken = await parts.link.request(() => parts.slots.taken(nodes.map(({ name }) => slotOf.node(name))));
  return Promise.all(
    nodes.map(async (node, index) => ({
      ...node,
      cordon: cordons.get(node.name),
      breaker: breakers.get(node.name)?.state ?? "closed",
      settings: settings.get(node.name) ?? {},
      sandboxes: loads.get(node.name)?.sandboxes ?? 0,
      slotsTaken: taken[index] ?? 0,
      queues: {
        node: await countJobs(parts, nodeQueue(node.name)),
        exec: await countJobs(parts, execQueue(node.name)),
      },
    })),
  );
}

async function countJobs(parts: Parts, queue: string): Promise<QueueCounts> {
  const counts = await parts.link.request(() =>
    parts.queues.get(queue).getJobCounts("active", "waiting", "prioritized", "delayed"),
  );
  const count = (state: string) => counts[state] ?? 0;
  return { active: count("active"), waiting: count("waiting") + count("prioritized"), delayed: count("delayed") };
}
