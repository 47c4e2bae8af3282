/** The nodes' breakers and cordons as this process knows them: told by what PVE answers, heard from the other workers. */
import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { type NodeStateStore, type NodeStates, toObstacles } from "../../shared/state/nodes.ts";
import type { NodeHealth } from "../pve/http.ts";
import type { Wake } from "../wake.ts";
import { type BreakerEvent, nextBreaker } from "./breaker.ts";

export interface NodeGuard extends NodeHealth, AsyncDisposable {
  /** Why no new sandbox goes to a node, by node; as last heard. */
  obstacles(): ReadonlyMap<string, string>;
  /** Whether people keep new sandboxes away from it, as last heard. */
  isCordoned(node: string): boolean;
  /** The obstacles, read now. */
  readObstacles(): Promise<ReadonlyMap<string, string>>;
  /** What operators have set for the nodes, as last heard or read. */
  settings(): NodeStates["settings"];
  /** From now on this process takes part in probing. `onUp`: a node's breaker was closed by this process's probe. */
  startProbing(
    probe: (node: NodeName, signal: AbortSignal) => Promise<boolean>,
    onUp: (node: NodeName) => Promise<unknown>,
  ): void;
}

/** What a probe of a node that is back takes at most, as a rule. */
const PROBE_TAKES_MS = 1_000;

const NOTHING: NodeStates = { cordons: new Map(), breakers: new Map(), settings: new Map() };

export async function startNodeGuard(store: NodeStateStore, wake: Wake, log: Logger): Promise<NodeGuard> {
  const closing = new AbortController();
  const pending = new Set<Promise<unknown>>();
  let states = NOTHING;
  let obstacles = toObstacles(states);
  let probing: Parameters<NodeGuard["startProbing"]> | null = null;
  let timer: NodeJS.Timeout | undefined;

  /** Work that nobody waits for: the caller has its own. */
  const aside = (work: () => Promise<unknown>) => {
    if (closing.signal.aborted) return;
    const done = work()
      .catch((error: unknown) => {
        if (!closing.signal.aborted) log.warn({ err: error }, "could not keep the nodes' state");
      })
      .finally(() => pending.delete(done));
    pending.add(done);
  };
  const reload = async () => {
    const before = states;
    states = await store.load();
    obstacles = toObstacles(states);
    for (const [node, { state }] of states.breakers) {
      if (state === "open" && !isOpen(before, node))
        log.warn({ node }, "node does not answer: its circuit breaker is open");
    }
    for (const [node] of before.breakers)
      if (isOpen(before, node) && !isOpen(states, node))
        log.info({ node }, "node answers again: its circuit breaker is closed");
    arm();
  };
  const arm = () => {
    clearTimeout(timer);
    if (probing === null || closing.signal.aborted) return;
    const dueAt = Math.min(
      ...[...states.breakers.values()].map((one) => (one.state === "closed" ? Infinity : one.until)),
    );
    if (dueAt === Infinity) return;
    timer = setTimeout(() => aside(probeDue), Math.max(0, dueAt - Date.now()));
  };
  const change = (node: string, event: BreakerEvent) =>
    store.changeBreaker(node, (before) => nextBreaker(before, event, Date.now()));
  /** Whoever claims a probe makes it; all others find it claimed. */
  const probeDue = async () => {
    const due = [...states.breakers].filter(([, one]) => one.state !== "closed" && one.until <= Date.now());
    await Promise.all(due.map(([node]) => probeOnce(node as NodeName))); // reported under the name it was asked by
    await reload();
  };
  const probeOnce = async (node: NodeName) => {
    const id = randomUUID();
    const claimed = await change(node, { type: "probe", probe: id });
    if (claimed?.state !== "half_open" || claimed.probe !== id || probing === null) return;
    const [probe, onUp] = probing;
    const alive = await probe(node, closing.signal);
    closing.signal.throwIfAborted(); // another takes it over
    await change(node, { type: "probed", probe: id, alive });
    if (alive) await onUp(node);
  };

  const off = wake.on((kind) => {
    if (kind === "node") aside(reload);
  });
  await reload();

  return {
    obstacles: () => obstacles,
    isCordoned: (node) => [...states.cordons.keys()].some((one) => one === node),
    settings: () => states.settings,
    async readObstacles() {
      await reload();
      return obstacles;
    },
    assertUp(node) {
      const breaker = states.breakers.get(node);
      if (breaker === undefined || breaker.state === "closed") return;
      throw new FleetError("node_unreachable", `${node} has not answered lately; it is asked again after a pause`, {
        facts: {
          node,
          breaker: breaker.state,
          // Not while the probe is under way: that would waste the attempt.
          retryAfterMs: PROBE_TAKES_MS + (breaker.state === "open" ? Math.max(0, breaker.until - Date.now()) : 0),
        },
      });
    },
    saw(node, alive) {
      const breaker = states.breakers.get(node);
      // The rule costs nothing: a node that answers and has answered before.
      if (breaker === undefined ? alive : breaker.state !== "closed") return;
      aside(() => change(node, { type: alive ? "answered" : "failed" }));
    },
    startProbing(...args) {
      probing = args;
      arm();
    },
    async [Symbol.asyncDispose]() {
      closing.abort(new FleetError("shutting_down", "the worker is shutting down"));
      clearTimeout(timer);
      off();
      await Promise.all(pending);
    },
  };
}

const isOpen = ({ breakers }: NodeStates, node: string) => (breakers.get(node)?.state ?? "closed") !== "closed";
