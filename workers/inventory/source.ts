/** The inventory as this process knows it: its own reading, or a newer one of another worker. */
import { FleetError, toFleetError } from "../../shared/errors.ts";
import type { RedisConnection } from "../../shared/redis/connect.ts";
import { type Inventory, loadInventory, saveInventory } from "../../shared/state/inventory.ts";
import type { Keys } from "../../shared/state/keys.ts";
import type { InventorySource } from "../context.ts";
import { orAbort } from "../or-abort.ts";
import type { Collector } from "./collect.ts";

/** A reading this young is good enough for everybody. */
const FRESH_MS = 2_000;
/** A reading may take this long, whoever waits for it. */
const READ_MS = 30_000;

export interface LiveInventory extends InventorySource, AsyncDisposable {
  onChange(listener: (inventory: Inventory) => void): void;
  /** Takes over what another worker has read, or reads when nobody has for `everyMs`. */
  update(everyMs: number, signal: AbortSignal): Promise<void>;
}

export function createInventorySource(redis: RedisConnection, keys: Keys, collector: Collector): LiveInventory {
  const listeners: ((inventory: Inventory) => void)[] = [];
  const closing = new AbortController();
  let latest: Inventory | null = null;
  let reading: Promise<Inventory> | null = null;
  let trouble: FleetError | null = null;

  const adopt = (inventory: Inventory) => {
    latest = inventory;
    trouble = null;
    for (const listener of listeners) listener(inventory);
    return inventory;
  };
  const read = async () => {
    const limit = AbortSignal.timeout(READ_MS);
    try {
      const before = latest ?? (await loadInventory(redis, keys));
      const inventory = await collector.collect({ signal: AbortSignal.any([closing.signal, limit]) }, before);
      await saveInventory(redis, keys, inventory);
      return adopt(inventory);
    } catch (error) {
      const slow = `the cluster could not be read within ${READ_MS} ms`;
      trouble = limit.aborted ? new FleetError("node_unreachable", slow, { cause: error }) : toFleetError(error);
      throw trouble;
    }
  };
  /** One reading for all who ask; each waits no longer than its own signal lets it, and takes nothing from the others. */
  const readShared = (signal: AbortSignal): Promise<Inventory> => {
    if (!reading) {
      reading = read().finally(() => {
        reading = null;
      });
      reading.catch(() => {}); // all who waited may have left
    }
    return orAbort(reading, signal);
  };
  return {
    current() {
      if (!latest) throw new FleetError("node_unreachable", "the cluster has not been read yet");
      return latest;
    },
    trouble: () => trouble,
    async refresh(signal) {
      signal.throwIfAborted();
      if (latest && Date.now() - latest.at < FRESH_MS) return latest;
      return readShared(signal);
    },
    async update(everyMs, signal) {
      const stored = await loadInventory(redis, keys);
      if (!stored || Date.now() - stored.at >= everyMs) await readShared(signal);
      else if (!latest || stored.at > latest.at) adopt(stored);
    },
    onChange: (listener) => void listeners.push(listener),
    async [Symbol.asyncDispose]() {
      closing.abort(new FleetError("shutting_down", "the worker is shutting down"));
      await reading?.catch(() => {});
    },
  };
}
