import { FleetError } from "../../shared/errors.ts";

/**
 * PVE's `key=value,key=value` (PVE::JSONSchema::parse_property_string): one part may have no key, it belongs to
 * `defaultKey`. There is no quoting, so a value can't hold a comma.
 */
export function parsePropertyString(text: string, defaultKey?: string): Map<string, string> {
  const properties = new Map<string, string>();
  for (const part of text.split(",")) {
    if (part.trim() === "") continue;
    const cut = part.indexOf("=");
    const key = cut === -1 ? defaultKey : part.slice(0, cut);
    if (!key || cut === part.length - 1) throw badFormat(`'${key ?? ""}' has no ${key ? "value" : "key"}`);
    if (properties.has(key)) throw badFormat(`'${key}' is there twice`);
    properties.set(key, part.slice(cut + 1));
  }
  return properties;
}

/** The default key's value first and without its key; undefined values are left out. */
export function formatPropertyString(
  properties: Iterable<readonly [string, string | number | boolean | undefined]>,
  defaultKey?: string,
): string {
  const parts: string[] = [];
  for (const [key, value] of properties) {
    if (value === undefined) continue;
    const text = typeof value === "boolean" ? (value ? "1" : "0") : String(value);
    if (text === "" || /[,\n]/.test(text)) throw badFormat(`'${key}' can't be written`);
    if (!/^[a-zA-Z0-9_-]+$/.test(key)) throw badFormat("a key of other characters");
    if (key !== defaultKey) parts.push(`${key}=${text}`);
    else if (text.includes("=")) throw badFormat(`'${key}' can't hold '='`);
    else parts.unshift(text);
  }
  return parts.join(",");
}

/** PVE's spellings (JSONSchema::parse_boolean). */
export function parseFlag(text: string | undefined): boolean | undefined {
  if (text === undefined) return undefined;
  if (/^(?:1|on|yes|true)$/i.test(text)) return true;
  if (/^(?:0|off|no|false)$/i.test(text)) return false;
  throw badFormat("not a boolean");
}

export function parseInteger(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (!/^\d{1,15}$/.test(text)) throw badFormat("not a whole number");
  return Number(text);
}

export function badFormat(what: string): FleetError {
  return new FleetError("invalid_input", `not a value of PVE's config: ${what}`);
}
