/**
 * What webhooks may connect to: public addresses, and the networks that their target lists. The address that a connection
 * goes to is what is looked at, not a lookup before it: a name may lead elsewhere the next moment.
 */
import { type LookupOptions, lookup } from "node:dns";
import { isIP, type LookupFunction } from "node:net";
import ipaddr from "ipaddr.js";
import { Agent, buildConnector } from "undici";
import type { WebhookTarget } from "../../shared/config-webhooks.ts";
import { FleetError } from "../../shared/errors.ts";

const CONNECT_MS = 5_000;
/** Connections to a target. */
export const LANES = 8;

type Reach = Pick<WebhookTarget, "name" | "url" | "allowPrivate">;

/** Pure. Addresses with another one inside, such as IPv4-mapped ones, are what they lead to. */
export function isInReach(address: string, { url, allowPrivate }: Pick<Reach, "url" | "allowPrivate">): boolean {
  const parsed = ipaddr.process(address);
  const isListed = allowPrivate.some((network) => {
    const [base, bits] = ipaddr.parseCIDR(network);
    return base.kind() === parsed.kind() && parsed.match(base, bits);
  });
  return isListed || (url.protocol === "https:" && parsed.range() === "unicast");
}

/** Throws `not_configured` for a URL whose address is out of reach; one with a name is looked at when it is connected to. */
export function assertInReach(target: Reach): void {
  const host = hostOf(target.url);
  if (isIP(host) === 0 || isInReach(host, target)) return;
  throw new FleetError(
    "not_configured",
    `FLEET_WEBHOOKS target ${target.name}, url: is no public address; list its network in allowPrivate`,
    { facts: { variables: ["FLEET_WEBHOOKS"] } },
  );
}

const hostOf = ({ hostname }: URL): string => hostname.replace(/^\[|\]$/g, "");

/** Connects to what is in reach, else fails with `address_refused`; follows no redirect. */
export function createAgent(target: Reach): Agent {
  assertInReach(target); // an address is not looked up
  const connect = buildConnector({ timeout: CONNECT_MS, allowH2: false, lookup: lookupWithin(target) });
  return new Agent({ connections: LANES, pipelining: 1, connect });
}

/** Gives out only addresses in reach. */
function lookupWithin(target: Reach): LookupFunction {
  return (hostname: string, options: LookupOptions, callback) =>
    lookup(hostname, { ...options, all: true }, (error, found) => {
      if (error) return callback(error, []);
      const [first, ...rest] = found.filter(({ address }) => isInReach(address, target));
      if (first === undefined) return callback(refused(target, found[0]?.address ?? ""), []);
      if (options.all === true) return callback(null, [first, ...rest]);
      callback(null, first.address, first.family);
    });
}

function refused({ name, url }: Reach, address: string): FleetError {
  return new FleetError(
    "address_refused",
    `${url.hostname} leads to ${address}, which ${url.protocol === "http:" ? "allowPrivate does not list" : "is not public and not in allowPrivate"}`,
    { facts: { target: name, address } },
  );
}
