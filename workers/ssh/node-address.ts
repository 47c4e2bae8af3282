import type { PveApi } from "../pve/api.ts";
import type { AddressOf } from "./node-shell.ts";

/** The cluster's own address of a node. Asked for at each new connection: nodes may be renumbered, and it is one request. */
export const createAddressOf =
  (pve: PveApi): AddressOf =>
  async (node, signal) => {
    const entries = await pve.clusterStatus({ signal });
    return entries.find(({ type, name }) => type === "node" && name === node)?.ip ?? null;
  };
