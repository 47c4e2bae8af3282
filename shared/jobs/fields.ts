/** Field schemas that several kinds share. Ranges are PVE's own (official API schema of 8.4 and 9.1). */
import { isIPv4, isIPv6 } from "node:net";
import { z } from "zod";
import { ServiceName } from "../ids.ts";

/** execd's own port; never exposed. */
export const EXECD_PORT = 39_375;

const Port = z.number().int().min(1).max(65_535);
export const ExposablePort = Port.refine((port) => port !== EXECD_PORT, {
  error: `${EXECD_PORT} is the exec daemon's port and is never exposed; choose the port of your own service`,
});

/**
 * Who may use a public URL. `link`: who holds a signed, expiring link, which sets a cookie; `api_key`: who sends one of the
 * team's keys; `none`: everybody. A public URL's default is `link`, since its host name can be guessed.
 */
export const ServiceAuth = z.enum(["none", "api_key", "link"]);
export type ServiceAuth = z.infer<typeof ServiceAuth>;

export const Service = z.strictObject({ name: ServiceName, port: ExposablePort, auth: ServiceAuth.optional() });

/** A service with the address that people use. `level` says how good it is, `reason` why not better. */
export const ExposedService = z.object({
  name: ServiceName,
  port: Port,
  url: z.string(),
  level: z.enum(["public", "lan_name", "lan_address"]),
  reason: z.string().optional(),
  /** Who gets in at the gate; services of LAN level have no gate in front. */
  auth: ServiceAuth.default("none"),
  /** New with each expose after a hide: links to an earlier one are void. */
  epoch: z.string().default("0"),
});
export type ExposedService = z.infer<typeof ExposedService>;

/** Half a surrogate pair is no text that every JSON parser takes. */
const text = z.string().refine((value) => value.isWellFormed(), { error: "must be well-formed Unicode" });
export const MetadataKey = text.min(1).max(64);
export const MetadataValue = text.max(512);
export const METADATA_LIMIT = 32;
export const Metadata = z
  .record(MetadataKey, MetadataValue)
  .refine((data) => Object.keys(data).length <= METADATA_LIMIT, {
    error: `must have at most ${METADATA_LIMIT} entries`,
  });

export const TtlSeconds = z.number().int().min(10).max(31_536_000);
/** `stop` and `pause` end the TTL; `pause` stops where nothing can be frozen. */
export const TtlAction = z.enum(["destroy", "stop", "pause"]);
export type TtlAction = z.infer<typeof TtlAction>;

/** What happens to a sandbox that nobody uses. */
export const IdleSeconds = z.number().int().min(10).max(31_536_000);
/** `pause` stops where nothing can be frozen. */
export const IdleAction = z.enum(["pause", "stop"]);
export type IdleAction = z.infer<typeof IdleAction>;

/** Environment of a command; sealed, never in job data. */
export const Env = z
  .record(
    z
      .string()
      .regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/, "must be a variable's name: letters, digits and '_', no digit first"),
    z
      .string()
      .max(32_768)
      .refine((value) => !value.includes("\0"), { error: "must not hold a NUL byte" }),
  )
  .refine((env) => Object.keys(env).length <= 128, { error: "must have at most 128 variables" });

export const UserName = z
  .string()
  .regex(/^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/, "must be a user's name: letters, digits, '_', '.' and '-', at most 32");

export const Command = z
  .string()
  .min(1)
  .max(1_000_000, "must have at most 1,000,000 characters (execd takes 1 MiB)")
  .refine((text) => !text.includes("\0"), { error: "must not hold a NUL byte" });

/** Of a file or folder in a sandbox. */
export const FilePath = z
  .string()
  .max(4_096)
  .startsWith("/", "must be an absolute path")
  .refine((path) => !path.includes("\0"), { error: "must not hold a NUL byte" });

/** Bytes of one upload or download; how they travel is not made for more. */
export const TRANSFER_LIMIT = 67_108_864;

/** What a transfer's content is: one file's bytes, or a tar of a folder's files. */
export const TransferFormat = z.enum(["file", "tar"]).default("file");

/** Resources of a container; the same for `provision` and `configure`. */
export const resources = {
  cores: z.number().int().min(1).max(8192).optional(),
  /** CPU time limit in cores; 0 is none. */
  cpulimit: z.number().min(0).max(8192).optional(),
  /** CPU weight. cgroup v2 takes 1 to 10000 (default 100), v1 2 to 500000 (default 1024); checked against the node. */
  cpuunits: z.number().int().min(1).max(500_000).optional(),
  memoryMib: z.number().int().min(16).max(8_388_608).optional(),
  swapMib: z.number().int().min(0).max(8_388_608).optional(),
  /** Size of the root disk in GiB; it can grow, never shrink. */
  diskGib: z.number().int().min(1).max(131_072).optional(),
  /** Start the container when its node boots. */
  onboot: z.boolean().optional(),
};

const address = (words: readonly [string, ...string[]], isAddress: (text: string) => boolean, most: number) => {
  const [version, example] = most === 32 ? ["IPv4", "10.0.0.5/24"] : ["IPv6", "fd00::5/64"];
  // Said twice: zod asks the union or its last member, as the value is of its type or not.
  const error = `must be ${words.join(", ")} or an ${version} address with prefix length, such as ${example}`;
  const cidr = (text: string) => {
    const [ip, bits, ...rest] = text.split("/");
    return rest.length === 0 && isAddress(ip ?? "") && /^\d{1,3}$/.test(bits ?? "") && Number(bits) <= most;
  };
  return z.union([z.literal(words), z.string().refine(cidr, { error })], { error }).optional();
};

export const Network = z.strictObject({
  bridge: z
    .string()
    .regex(/^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$/, "must be a bridge's name, such as vmbr0")
    .optional(),
  /** `dhcp`, an address with prefix length, or `lease` for one from `PVE_IP_RANGE`. */
  ip: address(["dhcp", "manual", "lease"], isIPv4, 32),
  ip6: address(["dhcp", "auto", "manual"], isIPv6, 128),
  gateway: z.ipv4().optional(),
  gateway6: z.ipv6().optional(),
  hwaddr: z
    .string()
    .regex(/^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$/, "must be a unicast MAC address, such as BC:24:11:00:00:01")
    .optional(),
  vlan: z.number().int().min(1).max(4094).optional(),
  /** Rate limit in MB/s (PVE's unit). */
  rateMbps: z.number().positive().max(100_000).optional(),
  firewall: z.boolean().optional(),
  mtu: z.number().int().min(576).max(65_535).optional(),
});
export type Network = z.infer<typeof Network>;

export const StorageName = z
  .string()
  .regex(/^[a-zA-Z][a-zA-Z0-9_.-]{0,63}$/, "must be a storage's name, such as local-lvm");

export const MountPoint = z.strictObject({
  storage: StorageName,
  sizeGib: z.number().int().min(1).max(131_072),
  path: z
    .string()
    .max(255)
    .regex(/^(\/[A-Za-z0-9_][A-Za-z0-9_.-]*)+$/, "must be an absolute path without '..', such as /data"),
  backup: z.boolean().optional(),
  readOnly: z.boolean().optional(),
});
