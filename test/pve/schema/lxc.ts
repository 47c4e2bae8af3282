import type { PveVersion } from "../options.ts";
import * as format from "./formats.ts";
import type { Rule, Rules } from "./rules.ts";

const flag: Rule = { type: "boolean" };
const text: Rule = { type: "string" };

export const NODE: Rule = { type: "string", required: true, format: format.nodeName };
export const VMID: Rule = { type: "integer", required: true, format: format.vmid, min: 100, max: 999_999_999 };
export const SNAPNAME: Rule = { type: "string", required: true, format: format.configId, maxLength: 40 };
export const STORAGE: Rule = { type: "string", required: true, format: format.storageId };
export const POOL: Rule = { type: "string", format: format.poolId };
export const DIGEST: Rule = { type: "string", maxLength: 40 };

export const optional = ({ required: _, ...rule }: Rule): Rule => rule;

const MOUNT_OPTION = "(?:discard|lazytime|noatime|nodev|noexec|nosuid)";
const volumeParts = {
  volume: { type: "string", required: true },
  size: { type: "string", format: format.diskSize },
  acl: flag,
  mountoptions: { type: "string", pattern: new RegExp(`^${MOUNT_OPTION}(?:;${MOUNT_OPTION})*$`) },
  quota: flag,
  replicate: flag,
  ro: flag,
  shared: flag,
} satisfies Rules;
const mountParts: Rules = {
  ...volumeParts,
  mp: { type: "string", required: true, pattern: /^\/.*$/ },
  backup: flag,
};

const networkParts = {
  name: { type: "string", required: true, pattern: /^[-_.\w\d]+$/ },
  bridge: { type: "string", pattern: /^[-_.\w\d]+$/ },
  firewall: flag,
  gw: { type: "string", format: format.ipv4 },
  gw6: { type: "string", format: format.ipv6 },
  hwaddr: { type: "string", format: format.mac },
  ip: { type: "string", format: format.ipv4Config },
  ip6: { type: "string", format: format.ipv6Config },
  link_down: flag,
  mtu: { type: "integer", min: 64, max: 65_535 },
  rate: { type: "number" },
  tag: { type: "integer", min: 1, max: 4094 },
  trunks: { type: "string", pattern: /^\d+(?:;\d+)*$/ },
  type: { type: "string", values: ["veth"] },
} satisfies Rules;

const featureParts: Rules = {
  force_rw_sys: flag,
  fuse: flag,
  keyctl: flag,
  mknod: flag,
  mount: { type: "string", pattern: /^[a-zA-Z0-9_; ]+$/ },
  nesting: flag,
};

/** What a container's config may hold, in 8.4 (pve-container's json_config_properties). */
const CONFIG = {
  arch: { type: "string", values: ["amd64", "i386", "arm64", "armhf", "riscv32", "riscv64"] },
  cmode: { type: "string", values: ["shell", "console", "tty"] },
  console: flag,
  cores: { type: "integer", min: 1, max: 8192 },
  cpulimit: { type: "number", min: 0, max: 8192 },
  cpuunits: { type: "integer", min: 0, max: 500_000 },
  debug: flag,
  description: { type: "string", maxLength: 8192 },
  "dev[n]": {
    type: "string",
    defaultKey: "path",
    parts: {
      path: text,
      "deny-write": flag,
      gid: { type: "integer", min: 0 },
      mode: { type: "string", pattern: /^0[0-7]{3}$/ },
      uid: { type: "integer", min: 0 },
    },
  },
  features: { type: "string", parts: featureParts },
  hookscript: { type: "string", format: format.volumeId },
  hostname: { type: "string", format: format.dnsName, maxLength: 255 },
  lock: {
    type: "string",
    values: [
      "backup",
      "create",
      "destroyed",
      "disk",
      "fstrim",
      "migrate",
      "mounted",
      "rollback",
      "snapshot",
      "snapshot-delete",
    ],
  },
  memory: { type: "integer", min: 16 },
  "mp[n]": { type: "string", parts: mountParts, defaultKey: "volume" },
  nameserver: { type: "string", format: format.ipAddresses },
  "net[n]": { type: "string", parts: networkParts },
  onboot: flag,
  ostype: {
    type: "string",
    values: [
      "debian",
      "devuan",
      "ubuntu",
      "centos",
      "fedora",
      "opensuse",
      "archlinux",
      "alpine",
      "gentoo",
      "nixos",
      "unmanaged",
    ],
  },
  protection: flag,
  rootfs: { type: "string", parts: volumeParts, defaultKey: "volume" },
  searchdomain: { type: "string", format: format.dnsNames },
  startup: { type: "string", format: format.startup },
  swap: { type: "integer", min: 0 },
  tags: { type: "string", format: format.tags },
  template: flag,
  timezone: text,
  tty: { type: "integer", min: 0, max: 6 },
  unprivileged: flag,
  "unused[n]": { type: "string", defaultKey: "volume", parts: { volume: { type: "string", required: true } } },
} satisfies Rules;

// biome-ignore lint/suspicious/noControlCharactersInRegex: the schema's own pattern excludes control characters
const ENV_LINE = /^\w+=[^\x00-\x08\x10-\x1F\x7F]*$/;

/** 9.1 and later hand an environment to the container; before that the parameter is unknown. */
const CONFIG_9: Rules = {
  ...CONFIG,
  entrypoint: { type: "string" },
  env: {
    type: "string",
    format: (value) =>
      value.split("\0").every((line) => ENV_LINE.test(line)) ? undefined : "value does not match the regex pattern",
  },
  "net[n]": { type: "string", parts: { ...networkParts, "host-managed": flag } },
  "mp[n]": { type: "string", parts: { ...mountParts, keepattrs: flag }, defaultKey: "volume" },
};

export function configRules(version: PveVersion): Rules {
  return version === "9.2" ? CONFIG_9 : CONFIG;
}

export function updateRules(version: PveVersion): Rules {
  const ids: Rule = { type: "string", format: format.configIds };
  return { ...configRules(version), node: NODE, vmid: VMID, delete: ids, revert: ids, digest: DIGEST };
}

export function createRules(version: PveVersion): Rules {
  return {
    ...configRules(version),
    node: NODE,
    vmid: VMID,
    ostemplate: { type: "string", required: true, maxLength: 255 },
    bwlimit: { type: "number", min: 0 },
    force: flag,
    "ignore-unpack-errors": flag,
    password: { type: "string", minLength: 5 },
    pool: POOL,
    restore: flag,
    "ssh-public-keys": text,
    start: flag,
    storage: optional(STORAGE),
    unique: flag,
  };
}

export const CLONE: Rules = {
  node: NODE,
  vmid: VMID,
  newid: VMID,
  bwlimit: { type: "number", min: 0 },
  description: text,
  full: flag,
  hostname: { type: "string", format: format.dnsName },
  pool: POOL,
  snapname: optional(SNAPNAME),
  storage: optional(STORAGE),
  target: optional(NODE),
};
