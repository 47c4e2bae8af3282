/** How a call is written on the wire. Pure. */
import { FleetError } from "../../shared/errors.ts";

/** Booleans become 1 and 0, undefined is left out; there is no null, which PVE would write into the config. */
export type Params = Record<string, string | number | boolean | undefined>;

/** pve-http-server answers 501 "for data too large" beyond it. */
const MAX_FORM_BYTES = 512 * 1024;

/** One segment of a path. A UPID brings ':', '@' and '!', all of which PVE takes encoded. */
export function encodeSegment(value: string | number): string {
  const text = String(value);
  if (text === "" || text === "." || text === "..") throw new FleetError("invalid_input", "not a name PVE could have");
  return encodeText(text);
}

/** A path with its values encoded: pvePath`/nodes/${node}/lxc/${vmid}/config`. */
export function pvePath(texts: TemplateStringsArray, ...values: (string | number)[]): string {
  return texts.reduce((path, text, index) => `${path}${encodeSegment(values[index - 1] ?? "")}${text}`);
}

/** `a=1&b=x%20y`. Not URLSearchParams: its '+' for a space is one more thing that a decoder can get wrong. */
export function encodeParams(params: Params): string {
  const pairs: string[] = [];
  for (const [name, value] of Object.entries(params)) {
    if (value === undefined) continue;
    if (typeof value === "number" && !Number.isFinite(value)) {
      throw new FleetError("invalid_input", `${name} is not a number`);
    }
    const text = typeof value === "boolean" ? (value ? "1" : "0") : String(value);
    pairs.push(`${encodeText(name)}=${encodeText(text)}`);
  }
  return pairs.join("&");
}

/** A form for POST and PUT, a query for GET and DELETE, to which PVE allows no body (501). */
export function toWire(method: string, path: string, params: Params = {}): { path: string; body?: string } {
  const full = `/api2/json${path}`;
  const encoded = encodeParams(params);
  if (encoded === "") return { path: full };
  if (method === "GET" || method === "DELETE") return { path: `${full}?${encoded}` };
  if (encoded.length > MAX_FORM_BYTES) {
    throw new FleetError("invalid_input", `${encoded.length} bytes of parameters are more than PVE takes`);
  }
  return { path: full, body: encoded };
}

const NAMED_BY: Record<string, string> = {
  nodes: "{node}",
  lxc: "{vmid}",
  tasks: "{upid}",
  snapshot: "{snapname}",
  storage: "{storage}",
  pools: "{poolid}",
};

/** The path with names in place of values, for metrics: `/nodes/{node}/lxc/{vmid}/config`. */
export function toEndpoint(path: string): string {
  const segments = path.split("/");
  return segments.map((segment, index) => NAMED_BY[segments[index - 1] ?? ""] ?? segment).join("/");
}

const SECRET_PARAM = /^(description|env|password|ssh-public-keys|secret|token|lxc\b.*)$/;

/** Texts that may not show up in an error: the values of parameters that can hold secrets. Longest first. */
export function secretsIn(params: Params = {}): string[] {
  const secrets: string[] = [];
  for (const [name, value] of Object.entries(params)) {
    if (!SECRET_PARAM.test(name) || typeof value !== "string") continue;
    secrets.push(value);
    for (const line of value.split(/[\0\n]/)) secrets.push(line, line.slice(line.indexOf("=") + 1));
  }
  return secrets.filter((secret) => secret.trim().length >= 4).sort((a, b) => b.length - a.length);
}

/** `text` without the secrets. */
export function redact(text: string, secrets: readonly string[]): string {
  return secrets.reduce((rest, secret) => rest.replaceAll(secret, "…"), text);
}

function encodeText(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}
