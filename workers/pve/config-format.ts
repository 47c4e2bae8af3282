/** Values of a container's config, as objects. Reading and writing again loses nothing, unknown keys included. */
import { badFormat, formatPropertyString, parseFlag, parseInteger, parsePropertyString } from "./property-string.ts";

/** `netN`. */
export interface NetConfig {
  /** Inside the container, `eth0`. */
  name: string;
  bridge?: string;
  /** `BC:24:11:…`; PVE makes one up where it is missing. */
  hwaddr?: string;
  /** CIDR, `dhcp` or `manual`. */
  ip?: string;
  /** CIDR, `auto`, `dhcp` or `manual`. */
  ip6?: string;
  gw?: string;
  gw6?: string;
  /** VLAN */
  tag?: number;
  /** MB/s */
  rate?: number;
  firewall?: boolean;
  mtu?: number;
  type?: string;
  linkDown?: boolean;
  /** What this version does not know, as it was. */
  others?: Record<string, string>;
}

/** `rootfs` and `mpN`. */
export interface MountConfig {
  /** `local-lvm:vm-201-disk-0`; to make one, `local-lvm:8` with GiB. A path for a bind mount. */
  volume: string;
  /** Path inside; of `mpN` only. */
  mp?: string;
  /** As PVE writes it, "8G"; read only. */
  size?: string;
  backup?: boolean;
  ro?: boolean;
  quota?: boolean;
  acl?: boolean;
  replicate?: boolean;
  shared?: boolean;
  mountOptions?: string[];
  others?: Record<string, string>;
}

/** `startup`, seconds for the delays. */
export interface StartupConfig {
  order?: number;
  up?: number;
  down?: number;
}

/** `features` */
export interface FeaturesConfig {
  nesting?: boolean;
  keyctl?: boolean;
  fuse?: boolean;
  mknod?: boolean;
  /** File system types. */
  mount?: string[];
  others?: Record<string, string>;
}

const NET_KEYS = new Set("name bridge hwaddr ip ip6 gw gw6 tag rate firewall mtu type link_down".split(" "));

export function parseNet(text: string): NetConfig {
  const properties = parsePropertyString(text);
  const name = properties.get("name");
  if (name === undefined) throw badFormat("a network interface without a name");
  const rate = properties.get("rate");
  if (rate !== undefined && !/^\d+(?:\.\d+)?$/.test(rate)) throw badFormat("not a rate");
  return {
    name,
    ...defined({
      bridge: properties.get("bridge"),
      hwaddr: properties.get("hwaddr"),
      ip: properties.get("ip"),
      ip6: properties.get("ip6"),
      gw: properties.get("gw"),
      gw6: properties.get("gw6"),
      tag: parseInteger(properties.get("tag")),
      rate: rate === undefined ? undefined : Number(rate),
      firewall: parseFlag(properties.get("firewall")),
      mtu: parseInteger(properties.get("mtu")),
      type: properties.get("type"),
      linkDown: parseFlag(properties.get("link_down")),
      others: othersOf(properties, NET_KEYS),
    }),
  };
}

export function formatNet({ linkDown, others, ...net }: NetConfig): string {
  return formatPropertyString([...Object.entries({ ...net, link_down: linkDown }), ...Object.entries(others ?? {})]);
}

const MOUNT_KEYS = new Set("volume mp size backup ro quota acl replicate shared mountoptions".split(" "));

export function parseMount(text: string): MountConfig {
  const properties = parsePropertyString(text, "volume");
  const volume = properties.get("volume");
  if (volume === undefined) throw badFormat("a mount without a volume");
  return {
    volume,
    ...defined({
      mp: properties.get("mp"),
      size: properties.get("size"),
      backup: parseFlag(properties.get("backup")),
      ro: parseFlag(properties.get("ro")),
      quota: parseFlag(properties.get("quota")),
      acl: parseFlag(properties.get("acl")),
      replicate: parseFlag(properties.get("replicate")),
      shared: parseFlag(properties.get("shared")),
      mountOptions: properties.get("mountoptions")?.split(";"),
      others: othersOf(properties, MOUNT_KEYS),
    }),
  };
}

export function formatMount({ mountOptions, others, ...mount }: MountConfig): string {
  const properties = { ...mount, mountoptions: mountOptions?.join(";") };
  return formatPropertyString([...Object.entries(properties), ...Object.entries(others ?? {})], "volume");
}

/** The storage of a volume id, `local-lvm` of `local-lvm:vm-201-disk-0`; undefined for a path. */
export function storageOf(volume: string): string | undefined {
  return /^([a-zA-Z][a-zA-Z0-9_.-]*):/.exec(volume)?.[1];
}

export function parseStartup(text: string): StartupConfig {
  const properties = parsePropertyString(text, "order");
  return defined({
    order: parseInteger(properties.get("order")),
    up: parseInteger(properties.get("up")),
    down: parseInteger(properties.get("down")),
  });
}

export function formatStartup(startup: StartupConfig): string {
  return formatPropertyString(Object.entries(startup));
}

const FEATURE_KEYS = new Set("nesting keyctl fuse mknod mount".split(" "));

export function parseFeatures(text: string): FeaturesConfig {
  const properties = parsePropertyString(text);
  return defined({
    nesting: parseFlag(properties.get("nesting")),
    keyctl: parseFlag(properties.get("keyctl")),
    fuse: parseFlag(properties.get("fuse")),
    mknod: parseFlag(properties.get("mknod")),
    mount: properties.get("mount")?.split(";"),
    others: othersOf(properties, FEATURE_KEYS),
  });
}

export function formatFeatures({ mount, others, ...features }: FeaturesConfig): string {
  return formatPropertyString([
    ...Object.entries({ ...features, mount: mount?.join(";") }),
    ...Object.entries(others ?? {}),
  ]);
}

/** PVE takes ';', ',' and blanks between tags and writes ';'. */
export function parseTags(text: string): string[] {
  return text.split(/[;,\s]+/).filter((tag) => tag !== "");
}

export function formatTags(tags: readonly string[]): string {
  for (const tag of tags) {
    if (!/^[a-z0-9_][a-z0-9_.+-]*$/i.test(tag)) throw badFormat("a tag of other characters than PVE takes");
  }
  return tags.join(";");
}

/** `env` (PVE 9.1): NUL-separated KEY=value. */
export function parseEnv(text: string): Record<string, string> {
  const lines = text.split(/\0+/).filter((line) => line !== "");
  return Object.fromEntries(
    lines.map((line) => {
      const cut = line.indexOf("=");
      if (cut < 1) throw badFormat("an environment variable without a name");
      return [line.slice(0, cut), line.slice(cut + 1)];
    }),
  );
}

/** Neither names nor values go into the error: they are secrets. */
export function formatEnv(env: Readonly<Record<string, string>>): string {
  const lines = Object.entries(env).map(([name, value]) => {
    if (!/^[a-zA-Z_]\w*$/.test(name)) throw badFormat("an environment variable's name of other characters");
    // LXC::Config::write_pct_config: "detected invalid newline inside property 'env'".
    if (/[\0\n\r]/.test(value)) throw badFormat("an environment variable's value with a line break");
    return `${name}=${value}`;
  });
  return lines.join("\0");
}

const UNIT_MIB: Record<string, number> = { K: 1 / 1024, M: 1, G: 1024, T: 1024 * 1024 };

/** "4G", "512M", "4GiB" in MiB; a bare number is bytes (JSONSchema::parse_size). */
export function parseSizeMib(text: string): number {
  const [, digits, unit] = /^(\d+(?:\.\d+)?)([KMGT]?)(?:iB)?$/.exec(text) ?? [];
  if (digits === undefined) throw badFormat("not a size");
  return Number(digits) * (unit ? (UNIT_MIB[unit] ?? 1) : 1 / (1024 * 1024));
}

/** MiB in the largest unit that needs no fraction, as PVE itself writes sizes. */
export function formatSizeMib(mib: number): string {
  if (!Number.isSafeInteger(mib) || mib < 0) throw badFormat("not a size in MiB");
  if (mib > 0 && mib % UNIT_TIB === 0) return `${mib / UNIT_TIB}T`;
  return mib % 1024 === 0 ? `${mib / 1024}G` : `${mib}M`;
}

const UNIT_TIB = 1024 * 1024;

function othersOf(properties: ReadonlyMap<string, string>, known: ReadonlySet<string>) {
  const others = [...properties].filter(([key]) => !known.has(key));
  return others.length === 0 ? undefined : Object.fromEntries(others);
}

/** Without the fields that are undefined. */
function defined<T extends object>(fields: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  // Only undefined ones are taken out, which is what the type says.
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never;
}
