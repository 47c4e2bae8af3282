/** Which host keys are trusted: those that the configuration pins, and no others. */
import { createHash, timingSafeEqual } from "node:crypto";
import { FleetError } from "../../shared/errors.ts";
import type { NodeName } from "../../shared/ids.ts";
import { findKnownHosts, type KnownHost } from "../../shared/known-hosts.ts";

export interface HostPlace {
  node: NodeName;
  host: string;
  port: number;
}

export interface Trust {
  /** Key types that are pinned by known_hosts; the server is asked for one of these first, as it may have several. */
  readonly types: readonly string[];
  /** Null: this key is trusted. Else `ssh_host_key_refused`, with the fingerprint seen and how to pin it. */
  refuse(key: Buffer): FleetError | null;
}

export type TrustOf = (place: HostPlace) => Trust;

/** As `ssh-keygen -l` prints it. */
export const fingerprintOf = (key: Buffer): string =>
  `SHA256:${createHash("sha256").update(key).digest("base64").replace(/=+$/, "")}`;

export function createTrust(pins: ReadonlyMap<string, readonly string[]>, known: readonly KnownHost[]): TrustOf {
  return (place) => {
    const pinned = pins.get(place.node) ?? [];
    // By address, and by the node's name as PVE's own known_hosts has it.
    const found = [...findKnownHosts(known, place.host, place.port), ...findKnownHosts(known, place.node, place.port)];
    const good = found.filter(({ marker }) => marker === null);
    return {
      types: [...new Set(good.map(({ type }) => type))],
      refuse(key) {
        const fingerprint = fingerprintOf(key);
        const isKey = (entry: KnownHost) => same(Buffer.from(entry.key, "base64"), key);
        if (found.some((entry) => entry.marker === "@revoked" && isKey(entry))) {
          return refusal(place, key, "is revoked in FLEET_SSH_KNOWN_HOSTS");
        }
        if (pinned.includes(fingerprint) || good.some(isKey)) return null;
        return pinned.length > 0 || good.length > 0
          ? refusal(place, key, "is not the pinned one: the node was set up anew, or somebody is in between")
          : refusal(place, key, "is unknown");
      },
    };
  };
}

const same = (one: Buffer, other: Buffer) => one.length === other.length && timingSafeEqual(one, other);

function refusal({ node, host, port }: HostPlace, key: Buffer, why: string): FleetError {
  const fingerprint = fingerprintOf(key);
  const type = typeOf(key);
  return new FleetError(
    "ssh_host_key_refused",
    `the host key of node ${node} (${host} port ${port}, ${type}) ${why}: ${fingerprint}. If ssh-keygen -lf on the ` +
      `node prints this too, pin it: FLEET_SSH_HOST_KEYS=${node}=${fingerprint}`,
    { facts: { node, host, port, type, fingerprint } },
  );
}

/** A key begins with its type's length and name (RFC 4253, 6.6). */
function typeOf(key: Buffer): string {
  const name = key.length > 4 ? key.subarray(4, 4 + Math.min(64, key.readUInt32BE(0))).toString("latin1") : "";
  return /^[a-z0-9@.-]+$/.test(name) ? name : "unknown type";
}
