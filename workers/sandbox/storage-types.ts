import type { NodeName } from "../../shared/ids.ts";
import type { Inventory } from "../../shared/state/inventory.ts";
import type { LxcConfig } from "../pve/api.ts";
import { parseMount, storageOf } from "../pve/config-format.ts";

/** PVE's types of the storages that a container's volumes are on; undefined for one that the token does not see. Pure. */
export function storageTypes({ nodes }: Inventory, node: NodeName, config: LxcConfig): (string | undefined)[] {
  const storages = nodes.find(({ name }) => name === node)?.storages ?? [];
  return Object.entries(config)
    .filter(([key]) => /^(rootfs|mp\d+)$/.test(key))
    .map(([, mount]) => storageOf(parseMount(String(mount)).volume))
    .map((storage) => storages.find(({ name }) => name === storage)?.type);
}
