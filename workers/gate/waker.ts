/** Wakes sandboxes that a request found asleep: by an operation like any other, one a sleep however many ask. */
import { setTimeout as delay } from "node:timers/promises";
import { type FleetErrorCode, toFleetError } from "../../shared/errors.ts";
import { parseInput } from "../../shared/jobs/index.ts";
import { defineScript, runScript } from "../../shared/redis/script.ts";
import { isEnded, type SandboxRecord } from "../../shared/state/records.ts";
import type { WorkerContext } from "../context.ts";
import { askOperation } from "../run/ask-operation.ts";
import { createLimiter } from "./limiter.ts";
import type { Registry, Route } from "./registry.ts";

/** After a wake that failed: every gate knows it from the operation's record, and asks again no earlier. */
const RETRY_MS = 5_000;
/** An event may be lost; then the next look finds what it told of. */
const LOOK_MS = 500;
/** Wakes that somebody without credentials may begin. */
const PER_CLIENT = { most: 20, perMs: 60_000 };
const PER_SANDBOX = { most: 10, perMs: 60_000 };

/** `awake`: it is not asleep any more, whatever it is now. */
export type Wake = { is: "awake" } | { is: "unwakeable"; code: FleetErrorCode } | { is: "limited"; reason: string };

export interface Waker {
  /** All that ask at the same time share one wake; it goes on when they have left. */
  wake(host: string, route: Route, client: string): Promise<Wake>;
}

/** Whether a wake can help. */
export const canWake = ({ sandbox, leaving }: Route): boolean =>
  sandbox.wakeOnHttp && (leaving || sandbox.state === "paused" || sandbox.state === "stopped");

/** An operation that failed gives its idempotency key back, if it still has it. KEYS: operation. ARGV: its id. */
const GIVE_KEY_BACK = defineScript(`
local key = redis.call('HGET', KEYS[1], 'idempotency')
if key and redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
return 1
`);

export function createWaker(context: WorkerContext, registry: Registry, signal: AbortSignal): Waker {
  const waking = new Map<string, Promise<Wake>>();
  const clients = createLimiter(PER_CLIENT);
  const sandboxes = createLimiter(PER_SANDBOX);

  const untilAwake = async (host: string, id: string): Promise<Wake> => {
    let change = Promise.withResolvers<void>();
    const off = registry.onChange((changed) => void (changed === id && change.resolve()));
    try {
      for (;;) {
        change = Promise.withResolvers<void>();
        const route = await registry.find(host);
        if (route === null || route.sandbox.id !== id || !canWake(route)) return { is: "awake" };
        const failed = route.leaving ? null : await askToWake(context, route.sandbox);
        if (failed !== null) return { is: "unwakeable", code: failed };
        await Promise.race([change.promise, delay(LOOK_MS, undefined, { signal })]);
      }
    } finally {
      off();
    }
  };

  return {
    async wake(host, route, client) {
      const { id } = route.sandbox;
      const known = waking.get(id);
      if (known) return known;
      if (route.service.auth === "none") {
        if (clients.isOver(client) || sandboxes.isOver(id))
          return { is: "limited", reason: "this sandbox was woken too often; wait a minute" };
        clients.count(client);
        sandboxes.count(id);
      }
      const begun = untilAwake(host, id).finally(() => waking.delete(id));
      waking.set(id, begun);
      return begun;
    },
  };
}

/** What the wake of this sleep failed with lately; null while it may still succeed. */
async function askToWake(context: WorkerContext, sandbox: SandboxRecord): Promise<FleetErrorCode | null> {
  const { redis, keys, store, metrics, log } = context;
  const input = parseInput("power", { sandboxId: sandbox.id, action: "resume", allowStop: true });
  const idempotencyKey = `wake ${sandbox.id} ${sandbox.stateAt ?? 0}`;
  try {
    const accepted = await askOperation(context, sandbox, { kind: "power", input, idempotencyKey });
    if (!accepted.existing) {
      metrics.gateWoke();
      log.info({ sandbox: sandbox.id, operation: accepted.id }, "a request wakes it");
      return null;
    }
    const operation = await store.load(accepted.id);
    if (!operation || !isEnded(operation.status) || operation.status === "succeeded") return null;
    if (Date.now() - (operation.endedAt ?? 0) < RETRY_MS) return operation.error?.code ?? "internal";
    await runScript(redis, GIVE_KEY_BACK, [keys.operation(operation.id)], [operation.id]);
    return null;
  } catch (thrown) {
    const { code } = toFleetError(thrown);
    if (code !== "sandbox_gone" && code !== "sandbox_not_found") throw thrown;
    return null;
  }
}
