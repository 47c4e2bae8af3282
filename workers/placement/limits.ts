import { countAddresses, type WorkerConfig } from "../../shared/config.ts";
import type { PlacementLimits } from "../../shared/state/inventory.ts";

/** By what rules a worker with this configuration places sandboxes. Pure. */
export function toLimits(config: WorkerConfig): PlacementLimits {
  return {
    slots: config.FLEET_NODE_SLOTS,
    memoryOvercommit: config.FLEET_MEMORY_OVERCOMMIT,
    diskOvercommit: config.FLEET_DISK_OVERCOMMIT,
    nodeSandboxes: config.FLEET_NODE_SANDBOXES,
    storageFullPercent: config.FLEET_STORAGE_FULL_PERCENT,
    policy: config.FLEET_PLACEMENT,
    allowPrivileged: config.PVE_ALLOW_PRIVILEGED,
    node: config.PVE_NODE,
    storage: config.PVE_STORAGE,
    vmids: config.PVE_VMID_RANGE,
    addresses: config.PVE_IP_RANGE === undefined ? undefined : countAddresses(config.PVE_IP_RANGE),
  };
}
