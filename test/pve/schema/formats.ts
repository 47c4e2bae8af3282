/** PVE's named formats: undefined when the value fits, else the text after "invalid format - ". */
export type Format = (value: string) => string | undefined;

function like(pattern: RegExp, text: (value: string) => string): Format {
  return (value) => (pattern.test(value) ? undefined : `${text(value)}\n`);
}

function each(format: Format): Format {
  return (value) => {
    for (const item of splitList(value)) {
      const wrong = format(item);
      if (wrong !== undefined) return wrong;
    }
    return undefined;
  };
}

/** PVE::Tools::split_list */
export function splitList(text: string): string[] {
  return text.split(/[,;\0\s]+/).filter((item) => item !== "");
}

const LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
const OCTET = "(?:25[0-5]|2[0-4]\\d|1?\\d?\\d)";
const IPV4 = `(?:${OCTET}\\.){3}${OCTET}`;

export const vmid = like(/^[1-9][0-9]{2,8}$/, () => "value does not look like a valid VM ID");
export const nodeName = like(new RegExp(`^${LABEL}$`), () => "value does not look like a valid node name");
export const dnsName = like(
  new RegExp(`^(?:${LABEL}\\.)*${LABEL}$`),
  () => "value does not look like a valid DNS name",
);
export const dnsNames = each(dnsName);
export const configId = like(/^[a-z][a-z0-9_-]+$/i, (value) => `invalid configuration ID '${value}'`);
export const configIds = each(configId);
export const storageId = like(
  /^[a-z][a-z0-9\-_.]*[a-z0-9]$/i,
  (value) => `storage ID '${value}' contains illegal characters`,
);
export const poolId = like(
  /^[A-Za-z0-9._-]+(?:\/[A-Za-z0-9._-]+){0,2}$/,
  (value) => `value '${value}' does not look like a valid pool name`,
);
export const volumeId = like(/^[a-z][a-z0-9\-_.]*[a-z0-9]:.+$/i, (value) => `unable to parse volume ID '${value}'`);
export const tags = each(like(/^[a-z0-9_][a-z0-9_\-+.]*$/i, () => "invalid characters in tag"));
export const diskSize = like(/^\d+(?:\.\d+)?[KMGT]?$/, () => "value does not look like a valid disk size");
export const ipv4 = like(new RegExp(`^${IPV4}$`), () => "value does not look like a valid IPv4 address");
export const ipv4Config = like(
  new RegExp(`^(?:dhcp|manual|${IPV4}/\\d{1,2})$`),
  () => "value does not look like a valid ipv4 network configuration",
);
export const ipv6 = like(/^[0-9a-f:.]+$/i, () => "value does not look like a valid IPv6 address");
export const ipv6Config = like(
  /^(?:auto|dhcp|manual|[0-9a-f:.]+\/\d{1,3})$/i,
  () => "value does not look like a valid ipv6 network configuration",
);
export const ipAddress = like(
  new RegExp(`^(?:${IPV4}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)$`),
  () => "value does not look like a valid IP address",
);
export const ipAddresses = each(ipAddress);
export const mac = like(
  /^[a-f0-9][02468ace](?::[a-f0-9]{2}){5}$/i,
  () => "value does not look like a valid unicast MAC address",
);
export const startup = like(
  /^(?:order=\d+|\d+|(?:up|down)=\d+)(?:,(?:up|down)=\d+)*$/,
  () => "unable to parse startup options",
);
