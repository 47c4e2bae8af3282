/** The inventory as this process knows it: its own reading, or a newer one of another worker. */
import { FleetError } from "../../shared/errors.ts";
import type { RedisConnection } from "../../shared/redis/connect.ts";
import { type Inventory, loadInventory, saveInventory } from "../../shared/state/inventory.ts";
import type { Keys } from "../../shared/state/keys.ts";
import type { InventorySource } from "../context.ts";
import type { Collector } from "./collect.ts";

/** A reading this young is good enough for everybody. */
const FRESH_MS = 2_000;

export interface LiveInventory extends InventorySource {
  onChange(listener: (inventory: Inventory) => void): void;
  /** Takes over what another worker has read, or reads when nobody has for `everyMs`. */
  update(everyMs: number, signal: AbortSignal): Promise<void>;
}

export function createInventorySource(redis: RedisConnection, keys: Keys, collector: Collector): LiveInventory {
  const listeners: ((inventory: Inventory) => void)[] = [];
  let latest: Inventory | null = null;
  let reading: Promise<Inventory> | null = null;

  const adopt = (inventory: Inventory) => {
    latest = inventory;
    for (const listener of listeners) listener(inventory);
    return inventory;
  };
  const read = async (signal: AbortSignal) => {
    const inventory = await collector.collect({ signal });
    await saveInventory(redis, keys, inventory);
    return adopt(inventory);
  };
  const refresh = (signal: AbortSignal) => {
    reading ??= read(signal).finally(() => {
      reading = null;
    });
    return reading;
  };
  return {
    current() {
      if (!latest) throw new FleetError("node_unreachable", "the cluster has not been read yet");
      return latest;
    },
    async refresh(signal) {
      if (latest && Date.now() - latest.at < FRESH_MS) return latest;
      return refresh(signal);
    },
    async update(everyMs, signal) {
      const stored = await loadInventory(redis, keys);
      if (stored && Date.now() - stored.at < everyMs) adopt(stored);
      else await refresh(signal);
    },
    onChange: (listener) => void listeners.push(listener),
  };
}
