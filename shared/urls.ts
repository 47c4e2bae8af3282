/** Which URL a service gets: pure, so that every level and every reason can be tested. */
import { FleetError } from "./errors.ts";
import type { SandboxId, ServiceName } from "./ids.ts";
import type { ExposedService, ServiceAuth } from "./jobs/fields.ts";
import { withDomain } from "./url-pattern.ts";

export interface UrlSettings {
  /** PVE_PUBLIC_DOMAIN. */
  publicDomain: string | undefined;
  /** PVE_URL_PATTERN, e.g. `{service}-{vmid}.{domain}`. */
  pattern: string;
}

export interface UrlFacts {
  id: SandboxId;
  /** The name that its caller gave it, for `{id}` in its id's place. */
  instanceId?: string | undefined;
  vmid: number;
  hostname: string;
  /** Search domain of the node, from PVE's `/nodes/{node}/dns`. */
  dnsSearch: string | undefined;
  /** An address that the container really has. */
  address: string | undefined;
}

/**
 * Resolves a service's URL, best first: public, LAN name, LAN address.
 * Throws `url_unresolvable` when there is none: a URL that cannot work is never given out; `unsupported` for auth without gate.
 */
export function resolveUrl(
  service: { name: ServiceName; port: number; auth?: ServiceAuth | undefined; epoch: string },
  facts: UrlFacts,
  settings: UrlSettings,
): ExposedService {
  const { name, port, epoch, auth = settings.publicDomain === undefined ? "none" : "link" } = service;
  const noPublic = "PVE_PUBLIC_DOMAIN is not set";
  if (settings.publicDomain !== undefined) {
    const host = fillPattern(settings.pattern, service, facts, settings.publicDomain);
    const [long] = host.split(".").filter((label) => label.length > 63);
    if (long !== undefined) {
      throw new FleetError("url_unresolvable", `${long} is no host name: longer than 63; choose a shorter name`, {
        facts: { sandbox: facts.id, service: name },
      });
    }
    return { name, port, url: `https://${host}`, level: "public", auth, epoch };
  }
  if (auth !== "none") {
    const wayOut = "set PVE_PUBLIC_DOMAIN and a gate in front, or take none";
    throw new FleetError("unsupported", `auth: nobody checks ${auth} on a LAN address; ${wayOut}`, {
      facts: { sandbox: facts.id, service: name, fields: ["auth"] },
    });
  }
  if (facts.dnsSearch) {
    return {
      name,
      port,
      url: `http://${facts.hostname}.${facts.dnsSearch}:${port}`,
      level: "lan_name",
      reason: noPublic,
      auth,
      epoch,
    };
  }
  const noName = `${noPublic}; the node has no DNS search domain`;
  if (facts.address) {
    const host = facts.address.includes(":") ? `[${facts.address}]` : facts.address;
    return { name, port, url: `http://${host}:${port}`, level: "lan_address", reason: noName, auth, epoch };
  }
  throw new FleetError("url_unresolvable", `no URL can reach the service: ${noName}; the container has no address`, {
    facts: { sandbox: facts.id, service: name },
  });
}

/** Host names are lower case; `_` of a sandbox id is no host name character and becomes `-`. */
export function fillPattern(
  pattern: string,
  service: { name: string; port: number },
  facts: { id: string; instanceId?: string | undefined; vmid: number },
  domain: string,
): string {
  const values: Record<string, string> = {
    service: service.name,
    port: String(service.port),
    vmid: String(facts.vmid),
    id: facts.instanceId ?? hostLabel(facts.id),
  };
  return withDomain(pattern, domain).replace(/\{(\w+)\}/g, (_, key: string) => values[key] ?? "");
}

export const hostLabel = (id: string): string => id.replaceAll("_", "-").toLowerCase();
