/** PVE's "value,key=value,..." strings. A part without a key belongs to `defaultKey`. */
export function parseProperties(text: string, defaultKey?: string): Map<string, string> {
  const parts = new Map<string, string>();
  for (const part of text.split(",")) {
    if (part === "") continue;
    const at = part.indexOf("=");
    if (at > 0) parts.set(part.slice(0, at), part.slice(at + 1));
    else parts.set(defaultKey ?? part, part);
  }
  return parts;
}

export function printProperties(parts: ReadonlyMap<string, string>, defaultKey?: string): string {
  const head = defaultKey === undefined ? undefined : parts.get(defaultKey);
  const rest = [...parts].filter(([key]) => key !== defaultKey).map(([key, value]) => `${key}=${value}`);
  return (head === undefined ? rest : [head, ...rest]).join(",");
}

/** net0 as PVE prints it: name first, then by name. */
export function printNetwork(parts: ReadonlyMap<string, string>): string {
  const rest = [...parts].filter(([key]) => key !== "name" && key !== "type").sort(([a], [b]) => (a < b ? -1 : 1));
  return [["name", parts.get("name") ?? "eth0"], ...rest, ["type", parts.get("type") ?? "veth"]]
    .map(([key, value]) => `${key}=${value}`)
    .join(",");
}

const UNITS: Record<string, number> = { "": 1, K: 1024, M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4 };

/** "4G", "512M", "1024" to bytes. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)([KMGT]?)$/.exec(text);
  const unit = UNITS[match?.[2] ?? "?"];
  return match?.[1] === undefined || unit === undefined ? undefined : Math.floor(Number(match[1]) * unit);
}

export function printSize(bytes: number): string {
  for (const unit of ["T", "G", "M", "K"] as const) {
    const factor = UNITS[unit] ?? 1;
    if (bytes >= factor && bytes % factor === 0) return `${bytes / factor}${unit}`;
  }
  return String(bytes);
}
