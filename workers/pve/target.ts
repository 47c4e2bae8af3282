import type { WorkerConfig } from "../../shared/config.ts";
import type { PveTarget } from "./http.ts";

/** PVE's API as the configuration names it. */
export function toPveTarget(config: WorkerConfig): PveTarget {
  return {
    hosts: config.PVE_API_URL,
    token: config.PVE_API_TOKEN,
    tls: {
      verify: config.PVE_VERIFY_TLS,
      ...(config.PVE_CA_FILE === undefined ? {} : { caPem: config.PVE_CA_FILE }),
      ...(config.PVE_TLS_FINGERPRINT === undefined ? {} : { fingerprint: config.PVE_TLS_FINGERPRINT }),
    },
    connectionsPerNode: config.PVE_CONNECTIONS_PER_NODE,
  };
}
