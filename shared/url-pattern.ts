/** PVE_URL_PATTERN read backwards: which service a host name means. Pure. */

/** What a host name says; by name or port, of a sandbox by VMID or id. */
export interface HostParts {
  service?: string;
  port?: number;
  vmid?: number;
  /** A sandbox's id as a host name label, or the instance id that it was given. */
  label?: string;
}

/** Digits alone can be told from what stands around them; a service and an id may both hold hyphens. */
const VARIABLES = {
  service: { is: "[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?", wide: true },
  port: { is: "[1-9][0-9]{0,4}", wide: false },
  vmid: { is: "[1-9][0-9]{2,8}", wide: false },
  id: { is: "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", wide: true },
} as const;
type Variable = keyof typeof VARIABLES;

interface Part {
  /** Text between variables, or one of them. */
  text: string;
  variable: Variable | undefined;
}

/** The pattern with its domain filled in: at the end where it names none. */
export function withDomain(pattern: string, domain: string): string {
  const isNamed = pattern.includes("{domain}") || pattern.endsWith(`.${domain}`);
  return (isNamed ? pattern : `${pattern}.{domain}`).replaceAll("{domain}", domain);
}

function toParts(pattern: string, domain: string): Part[] {
  return withDomain(pattern, domain)
    .split(/(\{(?:service|port|vmid|id)\})/)
    .filter((part) => part !== "")
    .map((part) => {
      const name = Object.keys(VARIABLES).find((one) => part === `{${one}}`) as Variable | undefined; // its own keys
      return { text: part, variable: name };
    });
}

/**
 * Why a pattern could give two services one host name; null when it can't. Names and ids hold letters, digits and hyphens,
 * so two of them in one label run into each other, and so do digits that nothing separates.
 */
export function findAmbiguity(pattern: string): string | null {
  const parts = toParts(pattern, "domain.example");
  const names = parts.flatMap(({ variable }) => variable ?? []);
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice !== undefined) return `names {${twice}} twice`;
  let wide: Variable | undefined;
  for (const [at, { variable, text }] of parts.entries()) {
    if (variable === undefined) {
      if (text.includes(".")) wide = undefined;
      continue;
    }
    if (VARIABLES[variable].wide) {
      if (wide !== undefined)
        return `has {${wide}} and {${variable}} in one label, which both may hold hyphens; put a dot between`;
      wide = variable;
    }
    const between = parts[at + 1];
    const next = between?.variable ?? parts[at + 2]?.variable;
    if (next === undefined || between === undefined) continue;
    if (between.variable !== undefined) return `has nothing between {${variable}} and {${next}}`;
    const apart =
      between.text.includes(".") ||
      (!VARIABLES[variable].wide && /^[^0-9]/.test(between.text)) ||
      (!VARIABLES[next].wide && /[^0-9]$/.test(between.text));
    if (!apart) return `can't tell where {${variable}} ends and {${next}} begins`;
  }
  return null;
}

/** A function from a host name, lower case and without port, to what it says; null for a host that is none of ours. */
export function createHostParser(pattern: string, domain: string): (host: string) => HostParts | null {
  const source = toParts(pattern, domain).map(({ text, variable }) =>
    variable === undefined ? text.replace(/[.\\^$*+?()[\]{}|-]/g, "\\$&") : `(?<${variable}>${VARIABLES[variable].is})`,
  );
  const matcher = new RegExp(`^${source.join("")}$`);
  return (host) => {
    const found = matcher.exec(host)?.groups;
    if (!found) return null;
    const { service, port, vmid, id } = found;
    if (Number(port ?? 1) > 65_535) return null;
    return {
      ...(service === undefined ? {} : { service }),
      ...(port === undefined ? {} : { port: Number(port) }),
      ...(vmid === undefined ? {} : { vmid: Number(vmid) }),
      ...(id === undefined ? {} : { label: id }),
    };
  };
}

/**
 * A Host header as the host name that it means: lower case, without a port. Null for what is none: empty, an address, a
 * trailing dot, anything but ASCII letters, digits, hyphens and dots (so no IDN, no blank, no control character).
 */
export function parseHostHeader(header: string | undefined): string | null {
  if (header === undefined || header.length > 255) return null;
  const [, host = "", port] = /^([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?$/.exec(header) ?? [];
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65_535)) return null;
  const labels = host.toLowerCase().split(".");
  const wellFormed = labels.every((label) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(label));
  const isAddress = /^[0-9.]+$/.test(host);
  return wellFormed && !isAddress ? labels.join(".") : null;
}
