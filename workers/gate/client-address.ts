/** Whose request it is, behind proxies: what decides how often somebody may be wrong must not be anybody's to choose. */
import type { IncomingMessage } from "node:http";
import { BlockList, isIP } from "node:net";

/** Whether an address is of a proxy in front. */
export type Trust = (address?: string) => boolean;

export function createTrust(cidrs: readonly string[]): Trust {
  const list = new BlockList();
  for (const cidr of cidrs) {
    const [address = "", bits = ""] = cidr.split("/");
    list.addSubnet(address, Number(bits), isIP(address) === 6 ? "ipv6" : "ipv4");
  }
  return (address = "") => {
    const plain = address.replace(/^::ffff:/, "");
    const family = isIP(plain);
    return family !== 0 && list.check(plain, family === 6 ? "ipv6" : "ipv4");
  };
}

/** Whether a proxy in front says that the client speaks HTTPS. `peer` as below. */
export function isSecure({ headers }: Pick<IncomingMessage, "headers">, peer: string | null, trust: Trust): boolean {
  const told =
    String(headers["x-forwarded-proto"] ?? "")
      .split(",")
      .at(-1)
      ?.trim()
      .toLowerCase() ?? "";
  return (peer === null || trust(peer)) && ["https", "wss"].includes(told);
}

/**
 * Each proxy adds whom it heard from at the end of `x-forwarded-for`: the first from there that is no proxy has sent it,
 * whatever stands before. `peer`: who is at the other end; null, where that is a proxy for certain.
 */
export function clientOf({ headers }: Pick<IncomingMessage, "headers">, peer: string | null, trust: Trust): string {
  const told = String(headers["x-forwarded-for"] ?? "").split(",");
  let client = peer;
  for (const next of told.reverse().map((part) => part.trim())) {
    if ((client !== null && !trust(client)) || isIP(next) === 0) break;
    client = next;
  }
  return client ?? "";
}
