/**
 * Replicas that the fleet made go when nothing was cloned from them for long, and at once when what they are replicas of has
 * changed. Never the last one: without its original a replica stands for it.
 */
import type { Replica } from "../../shared/state/inventory.ts";
import { loadCopies, type Template } from "../../shared/state/templates.ts";
import type { WorkerContext } from "../context.ts";
import { passOver } from "../pass-over.ts";
import { ASK_AGAIN_MS, destroySandbox } from "./expire.ts";
import { forEachRecord } from "./for-each-record.ts";

export async function retireReplicas(context: WorkerContext, now: () => number = Date.now): Promise<void> {
  const { redis, keys, store, config, inventory } = context;
  const copies = await loadCopies(redis, keys, passOver(context));
  if (copies.length === 0) return;
  const { replicas } = inventory.current();
  const uses = await redis.hgetall(keys.replicaUses);
  const idleMs = config.FLEET_REPLICA_IDLE_HOURS * 3_600_000;
  await forEachRecord(context, copies, async (copy) => {
    const usedAt = Number(uses[copy.replica.vmid] ?? 0);
    const why = whyNeedless(copy, replicas, { idleMs, usedAt, now: now() });
    const record = why === null ? null : await store.loadSandbox(copy.id);
    if (why === null || record?.state !== "template") return;
    // PVE refuses where linked clones need it (not LVM-thin's, nor btrfs'): `template_in_use`, and it is asked again.
    const idempotencyKey = `replica ${copy.id} ${Math.floor(now() / ASK_AGAIN_MS)}`;
    await destroySandbox(context, record, { idempotencyKey, why });
  });
}

/** Null: it is needed. Pure. */
export function whyNeedless(
  { createdAt, replica }: Pick<Template, "createdAt" | "replica">,
  all: readonly Replica[],
  { idleMs, usedAt, now }: { idleMs: number; usedAt: number; now: number },
): string | null {
  const { copyOf } = replica;
  const original = all.find(({ vmid }) => vmid === copyOf?.vmid);
  // One that can't be asked now may be as it was, or gone.
  if (copyOf === undefined || original?.online !== true || original.configHash === undefined) return null;
  if (original.configHash !== copyOf.configHash) return "what it is a replica of has changed";
  if (idleMs > 0 && now - Math.max(createdAt, usedAt) > idleMs) return "nothing was cloned from it for long";
  return null;
}
