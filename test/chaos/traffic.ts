/** Producers of several teams at work: each provisions a sandbox, does things to it and mostly destroys it, again and again. */
import { setTimeout as pause } from "node:timers/promises";
import {
  type Fleet,
  FleetError,
  type FleetErrorCode,
  type Handle,
  type JobInput,
  type JobMethods,
  type JobName,
} from "../../producers/index.ts";
import type { Random } from "./random.ts";
import type { Span } from "./strike.ts";
import { TEMPLATE } from "./world.ts";

export interface TrafficOptions {
  random: Random;
  teams: readonly [Fleet, ...Fleet[]];
  /** Accepted operations after which no new ones are sent. */
  operations: number;
  /** Producers at once. */
  producers: number;
  /** Ends the sending; what was accepted goes on. */
  signal: AbortSignal;
}

export interface Traffic {
  /** Ids of all accepted operations, and when: from the request that was accepted until its producer heard of it. */
  readonly accepted: ReadonlyMap<string, Span>;
  /** Accepted operations whose `result()` has settled. */
  readonly answered: ReadonlySet<string>;
  /** Resolves once everything has been sent and nearly all of it answered: the last ones alone make no traffic. */
  readonly nearlyOver: Promise<void>;
  /** Resolves when no producer sends or waits any more. */
  readonly over: Promise<void>;
}

/** The share of answers at which traffic is nearly over. */
const NEARLY = 0.98;
const CHANGES = { exec: 35, expose: 15, hide: 8, snapshot: 12, power: 15, configure: 10 } as const;

export function startTraffic({ random, teams, operations, producers, signal }: TrafficOptions): Traffic {
  const accepted = new Map<string, Span>();
  const answered = new Set<string>();
  let started = 0;
  let asked = 0;
  const { promise: nearlyOver, resolve: endNearly } = Promise.withResolvers<void>();

  /** Null when it was refused, or when there is nothing more to send. */
  async function send<N extends keyof JobMethods>(
    fleet: Fleet,
    kind: N,
    input: JobInput<N>,
  ): Promise<Handle<N> | null> {
    if (started >= operations || signal.aborted) return null;
    started += 1;
    asked += 1;
    const answer = await submit(fleet, kind, { input, key: `chaos ${asked}` });
    if (answer === null) {
      started -= 1;
      return null;
    }
    const { handle, span } = answer;
    accepted.set(handle.id, span);
    const note = () => {
      answered.add(handle.id);
      if (answered.size >= NEARLY * operations) endNearly();
    };
    handle.result().then(note, note);
    return handle;
  }

  async function produce(own: Random): Promise<void> {
    while (started < operations && !signal.aborted) {
      const fleet = own.pick(teams);
      const provision = await send(fleet, "provision", provisionInput(own));
      if (provision === null) continue;
      const sandboxId = provision.sandboxId;
      await pause(own.between(0, 1_000));
      const early = own.weighted({ none: 80, cancel: 8, destroy: 6, exec: 6 });
      if (early === "cancel") await cancelAfter(provision, own.between(0, 2_500));
      if (early === "destroy") await pause(own.between(0, 2_500)).then(() => send(fleet, "destroy", { sandboxId }));
      if (early === "exec") await send(fleet, "exec", { sandboxId, command: "echo early" });
      const up = await provision.result().then(
        () => true,
        () => false,
      );
      if (up) await use(own, fleet, sandboxId);
    }
  }

  async function use(own: Random, fleet: Fleet, sandboxId: JobInput<"destroy">["sandboxId"]): Promise<void> {
    for (let left = own.weighted({ 0: 3, 1: 3, 2: 2, 4: 1 }); Number(left) > 0; left = `${Number(left) - 1}` as "1") {
      const change = await sendChange(own, fleet, sandboxId);
      if (own.chance(0.2)) await extend(fleet, sandboxId, own.between(10, 30));
      if (change && own.chance(0.1)) await cancelAfter(change, own.between(0, 1_000));
      if (change && own.chance(0.6)) await change.result().catch(() => {});
    }
    await pause(own.between(0, 2_000)); // producers think, too: it gives the faults time to meet operations
    if (!own.chance(0.85)) return;
    const destroy = await send(fleet, "destroy", { sandboxId });
    await destroy?.result().catch(() => {});
  }

  function sendChange(own: Random, fleet: Fleet, sandboxId: JobInput<"destroy">["sandboxId"]) {
    const name = own.pick(["web", "api"]) as JobInput<"expose">["name"]; // branded
    const kind = own.weighted(CHANGES);
    switch (kind) {
      case "exec":
        return send(fleet, kind, { sandboxId, command: `sleep ${own.next().toFixed(2)}`, idempotent: own.chance(0.5) });
      case "expose":
        return send(fleet, kind, { sandboxId, name, port: own.between(3_000, 3_100) });
      case "hide":
        return send(fleet, kind, { sandboxId, name });
      case "snapshot":
        return send(fleet, kind, { sandboxId });
      case "power":
        return send(fleet, kind, { sandboxId, action: own.pick(["start", "stop", "shutdown", "reboot"]) });
      case "configure":
        return send(fleet, kind, { sandboxId, memoryMib: own.between(2, 8) * 128 });
    }
  }

  const over = Promise.all(Array.from({ length: producers }, () => produce(random.fork()))).then(() => endNearly());
  return { accepted, answered, nearlyOver, over };
}

function provisionInput(random: Random): JobInput<"provision"> {
  return {
    template: TEMPLATE,
    ...(random.chance(0.3) ? { priority: "batch" as const } : {}),
    ...(random.chance(0.1) ? { clone: "full" as const } : {}),
    ...(random.chance(0.15) ? { setup: ["echo ready > setup.log"] } : {}),
    ...(random.chance(0.3) ? ttl(random) : {}),
    ...(random.chance(0.3) ? { services: [{ name: "web" as never, port: 8_080 }] } : {}), // branded by its schema
  };
}

/** Short enough to end in the middle of everything. */
const ttl = (random: Random): Pick<JobInput<"provision">, "ttlSeconds" | "ttlAction" | "ttlExtendOnUse"> => ({
  ttlSeconds: random.between(10, 25),
  ttlAction: random.pick(["destroy", "stop", "pause"]),
  ttlExtendOnUse: random.chance(0.3),
});

/** Too late, or in a second that Redis has forgotten or was away. */
const TOO_LATE: readonly FleetErrorCode[] = ["redis_unavailable", "sandbox_gone", "sandbox_not_found"];

async function extend(fleet: Fleet, sandboxId: string, seconds: number): Promise<void> {
  await fleet.sandboxes.extend(sandboxId, { seconds }).catch((error: unknown) => {
    if (!(error instanceof FleetError && TOO_LATE.includes(error.code))) throw error;
  });
}

/** As a producer should: asks again with the same key while Redis is away. Null when the fleet refuses. */
async function submit<N extends keyof JobMethods>(
  fleet: Fleet,
  kind: N,
  { input, key }: { input: JobInput<N>; key: string },
): Promise<{ handle: Handle<N>; span: Span } | null> {
  const methods: JobMethods = fleet;
  while (true) {
    const from = Date.now();
    try {
      const handle = await methods[kind](input, { idempotencyKey: key });
      return { handle, span: { from, to: Date.now() } };
    } catch (error) {
      if (!(error instanceof FleetError)) throw error;
      if (error.code === "redis_unavailable") continue;
      if (error.code === "sandbox_gone" || error.code === "sandbox_not_found") return null;
      throw error;
    }
  }
}

async function cancelAfter(handle: Handle<JobName>, ms: number): Promise<void> {
  await pause(ms);
  await handle.cancel().catch((error: unknown) => {
    // Unknown: Redis has forgotten the second in which it was accepted.
    const expected = error instanceof FleetError && ["redis_unavailable", "operation_unknown"].includes(error.code);
    if (!expected) throw error;
  });
}
