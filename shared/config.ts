/**
 * Configuration from the environment. Producers need `REDIS_URL` alone; workers need PVE's credentials too.
 * Every bad variable is reported at once, with its name, its problem and the way out, never with its value.
 */
import { accessSync, constants, readFileSync } from "node:fs";
import { BlockList, isIP } from "node:net";
import { z } from "zod";
import { Cidrs, isNetwork } from "./cidrs.ts";
import { Domain, GATE_SETTINGS } from "./config-gate.ts";
import { findOpsProblems, OPS_SETTINGS } from "./config-ops.ts";
import { findSshProblems, SSH_SETTINGS } from "./config-ssh.ts";
import { TRACE_SETTINGS } from "./config-traces.ts";
import { WEBHOOK_SETTINGS } from "./config-webhooks.ts";
import { FleetError } from "./errors.ts";
import { NodeName, TeamId } from "./ids.ts";
import { StorageName } from "./jobs/fields.ts";
import { parseRedisUrl } from "./redis/connect.ts";

type Env = Readonly<Record<string, string | undefined>>;

const integer = (least: number, most: number) =>
  z.coerce.number({ error: "must be a whole number" }).int("must be a whole number").min(least).max(most);
const flag = z
  .enum(["1", "0", "true", "false"], { error: "must be 1, 0, true or false" })
  .transform((v) => v === "1" || v === "true");
/** Comma-separated; `missing` is the text for a variable that is needed and not set. */
const listOf = (missing: string) =>
  z.string({ error: missing }).transform((text) =>
    text
      .split(",")
      .map((part) => part.trim())
      .filter(Boolean),
  );
const list = listOf("is missing");

// Never plain HTTP: every request carries the token.
const ApiUrls = listOf("is missing; give https://host:8006, or several hosts of the cluster, comma-separated").refine(
  (urls) => urls.length > 0 && urls.every((url) => /^https:\/\/[^/?#@]+\/?$/.test(url) && URL.canParse(url)),
  { error: "must be one or more of https://host:8006, comma-separated, without a path" },
);

const Range = (least: number, most: number) =>
  z
    .string()
    .regex(/^\d+-\d+$/, "must be FIRST-LAST, such as 20000-29999")
    .transform((text) => {
      const [first = 0, last = 0] = text.split("-").map(Number);
      return { first, last };
    })
    .refine(({ first, last }) => first >= least && last <= most && first <= last, {
      error: `must lie between ${least} and ${most}, the smaller first`,
    });

export const VmidRange = Range(100, 999_999_999);

/** FIRST-LAST/BITS of IPv4 addresses. */
const IpRange = z
  .string()
  .regex(/^\d+(\.\d+){3}-\d+(\.\d+){3}\/\d+$/, "must be FIRST-LAST/BITS, such as 10.0.0.100-10.0.0.199/24")
  .transform((text) => {
    const [span = "", bits = ""] = text.split("/");
    const [first = "", last = ""] = span.split("-");
    return { first, last, bits: Number(bits) };
  })
  .refine(
    ({ first, last, bits }) => isIP(first) === 4 && isIP(last) === 4 && bits <= 32 && toNumber(first) <= toNumber(last),
    {
      error: "must be two IPv4 addresses, the smaller first, and a prefix length up to 32",
    },
  )
  .refine(({ first, last }) => toNumber(last) - toNumber(first) < 65_536, {
    error: "must hold at most 65,536 addresses",
  })
  .refine(({ first, last, bits }) => networkOf(first, bits) === networkOf(last, bits), {
    error: "must lie within one network of its prefix length",
  })
  .refine(({ first, last, bits }) => bits >= 31 || (!isEdge(first, bits) && !isEdge(last, bits)), {
    error: "must leave out the network's first and last address, which no container can have",
  });

const networkOf = (ip: string, bits: number) => Math.floor(toNumber(ip) / 2 ** (32 - bits));

/** Whether it is the network's own address or its broadcast address. */
function isEdge(ip: string, bits: number): boolean {
  const size = 2 ** (32 - bits);
  return toNumber(ip) % size === 0 || toNumber(ip) % size === size - 1;
}

const isWithin = (ip: string, { first, last }: { first: string; last: string }) =>
  toNumber(ip) >= toNumber(first) && toNumber(ip) <= toNumber(last);

const toNumber = (ip: string) => ip.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);

const Fingerprint = z
  .string()
  .regex(/^([0-9a-fA-F]{2}:){31}[0-9a-fA-F]{2}$/, "must be a SHA-256 fingerprint: 32 hex pairs with ':' between")
  .transform((text) => text.toUpperCase());

/** 32 bytes as hex or base64; the first seals, all open (rotation). */
export const SecretKeys = listOf("is missing; make one with: openssl rand -hex 32")
  .transform((keys) => keys.map(toKey))
  .refine((keys): keys is Buffer[] => keys.length > 0 && keys.every((key) => key?.length === 32), {
    error: "must be 32 bytes as 64 hex digits or base64; make one with: openssl rand -hex 32",
  });

function toKey(text: string): Buffer | null {
  if (/^[0-9a-fA-F]{64}$/.test(text)) return Buffer.from(text, "hex");
  return /^[A-Za-z0-9+/]{43}=?$/.test(text) ? Buffer.from(text, "base64") : null;
}

const CaFile = z.string().transform((path, context) => {
  try {
    return readFileSync(path, "utf8");
  } catch {
    context.addIssue({ code: "custom", message: "must be a readable PEM file" });
    return z.NEVER;
  }
});

export const RedisUrl = z
  .string({ error: "is missing; give redis://host:6379, or rediss:// for TLS" })
  .refine(
    (url) =>
      /^(rediss?|redis-sentinel|redis-cluster|rediss-sentinel|rediss-cluster):\/\//.test(url) &&
      Number.isInteger(toTarget(url)?.db),
    {
      error:
        "must be redis://host:6379/0, rediss:// for TLS, redis-sentinel://host:26379,host:26379?master=name, or redis-cluster://host:6379,host:6379",
      abort: true,
    },
  )
  .superRefine((url, context) => {
    const { tls, files } = parseRedisUrl(url);
    const { ca, cert, key } = files;
    if (!tls && (ca ?? cert ?? key) !== undefined)
      context.addIssue({ code: "custom", message: "names files for TLS, which only rediss:// uses" });
    if ((cert === undefined) !== (key === undefined))
      context.addIssue({ code: "custom", message: "needs cert= and key= together" });
    for (const [name, path] of Object.entries(files))
      if (!isReadable(path)) context.addIssue({ code: "custom", message: `must name a readable PEM file as ${name}=` });
  });

function toTarget(url: string): ReturnType<typeof parseRedisUrl> | null {
  try {
    return parseRedisUrl(url);
  } catch {
    return null;
  }
}

function isReadable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK);
    return true;
  } catch {
    return false;
  }
}

export const Prefix = z
  .string()
  .regex(
    /^\{[a-zA-Z0-9_.-]{1,40}\}$/,
    "must be a name in braces, such as {fleet} (the braces keep a cluster's keys together)",
  );

/** Variables that both sides know; all that a producer reads. */
const SharedEnv = z.object({
  REDIS_URL: RedisUrl.meta({
    description:
      "`redis://host:6379/0`, `rediss://` for TLS, `redis-sentinel://h1,h2/0?master=name`, `redis-cluster://h1,h2`",
    example: "redis://127.0.0.1:6379",
  }),
  FLEET_PREFIX: Prefix.default("{fleet}").describe("Which fleet, in braces; several fleets may share one Redis"),
  FLEET_TEAM: TeamId.optional().describe(
    "CLI only: whom operations count for; others' sandboxes are then out of reach",
  ),
  FLEET_SECRET_KEY: SecretKeys.optional(),
});

/** As PVE's firewall takes them. */
const Networks = Cidrs.refine((all) => all.every(isNetwork), {
  error: "must be networks whose address ends where their bits do: 10.1.2.0/24, not 10.1.2.3/24",
})
  .optional()
  .transform((networks) => networks ?? []);

/** What a process does. */
const ROLES = ["worker", "ops", "gate"] as const;
type Role = (typeof ROLES)[number];

/** What only workers need. */
const WorkerEnv = SharedEnv.extend({
  FLEET_SECRET_KEY: SecretKeys.meta({
    description:
      "32 bytes, hex or base64; several comma-separated: the first seals, all open. Producers need it to send any secret; `openssl rand -hex 32`",
    example: "",
  }),
  FLEET_RETENTION_HOURS: z.coerce
    .number({ error: "must be a number" })
    .min(0.001)
    .max(8_760)
    .default(24)
    .describe("How long ended operations and sandboxes are kept"),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .describe("trace, debug, info, warn, error, fatal, silent"),
  PVE_API_URL: ApiUrls.meta({
    description: "API hosts of the cluster, comma-separated, tried in order",
    example: "https://10.0.0.1:8006",
  }),
  PVE_API_TOKEN: z
    .string({ error: "is missing; make one with: pveum user token add USER@REALM TOKENID" })
    .regex(/^[^\s@!=]+@[^\s@!=]+![^\s@!=]+=[0-9a-fA-F-]{36}$/, "must be USER@REALM!TOKENID=UUID")
    .meta({ description: "`USER@REALM!TOKENID=UUID`", example: "" }),
  PVE_VERIFY_TLS: flag.default(true).describe("0 turns verification off; better: pin the certificate"),
  PVE_CA_FILE: CaFile.optional().describe("PEM file of the cluster's CA (`/etc/pve/pve-root-ca.pem`)"),
  PVE_TLS_FINGERPRINT: Fingerprint.optional().meta({
    description: "SHA-256 fingerprint of the API's certificate, as `pvenode cert info` prints it; or PVE_CA_FILE",
    example: "",
  }),
  PVE_CONNECTIONS_PER_NODE: integer(1, 32).default(4).describe("PVE has 3 API workers a node"),
  PVE_NODE: NodeName.optional().describe("Node for provisions that name none"),
  PVE_STORAGE: StorageName.optional().describe("Target storage of full clones"),
  PVE_BRIDGE: z
    .string()
    .regex(/^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$/, "must be a bridge's name, such as vmbr0")
    .optional()
    .describe("Bridge of `net0`; the template's own when absent"),
  PVE_GATEWAY: z.ipv4("must be an IPv4 address").optional().describe("Gateway of fixed and leased addresses"),
  PVE_IP_RANGE: IpRange.optional().describe("`FIRST-LAST/BITS`: addresses to lease to sandboxes"),
  PVE_POOL: z
    .string()
    .regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$/, "must be a pool's name")
    .optional()
    .describe("PVE pool that every container is put in"),
  PVE_VMID_RANGE: VmidRange.prefault("20000-29999").describe(
    "VMIDs of the fleet; one that was given back is used again only after the whole range has passed",
  ),
  PVE_HOSTNAME_PATTERN: z
    .string()
    .regex(/^([a-z0-9-]|\{vmid\}|\{id\})+$/, "may hold lower-case letters, digits, hyphens, {vmid} and {id}")
    .refine((text) => /\{vmid\}|\{id\}/.test(text), { error: "needs {vmid} or {id}, else names repeat" })
    .default("cmux-{vmid}")
    .describe("May hold `{vmid}` and `{id}`"),
  PVE_FIREWALL_ALLOW: Networks.describe(
    "Networks of workers, gates and whoever may connect to sandboxes; with it their firewalls are closed to all others",
  ),
  PVE_FIREWALL_DENY: Networks.describe("Networks that sandboxes may not connect to: PVE's, Redis'"),
  PVE_ALLOW_PRIVILEGED: flag.default(false).describe("1 allows privileged templates"),
  ...GATE_SETTINGS,
  SANDBOX_CIDRS: Cidrs.prefault("10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fd00::/8").meta({
    description: "Where sandboxes may have their addresses; nothing else is connected to",
    shown: "private networks",
  }),
  FLEET_NODE_SLOTS: integer(1, 64).default(4).describe("Heavy operations at once on a node"),
  FLEET_EXEC_SLOTS: integer(1, 4096).default(64).describe("Commands at once on a node"),
  FLEET_STORAGE_SLOTS: integer(1, 16).default(2).describe("Full clones at once on a shared storage"),
  FLEET_SNAPSHOTS_KEPT: integer(1, 100)
    .optional()
    .meta({ description: "Snapshots that are kept of each sandbox: with a newer one the oldest go", shown: "all" }),
  FLEET_SNAPSHOT_MAX_AGE_HOURS: integer(1, 87_600)
    .optional()
    .meta({ description: "Snapshots are deleted this long after they were taken", shown: "none" }),
  FLEET_TTL_DEFAULT_SECONDS: integer(10, 31_536_000)
    .optional()
    .meta({ description: "TTL of provisions that name none", shown: "the maximum, else none" }),
  FLEET_TTL_MAX_SECONDS: integer(10, 31_536_000).optional().meta({
    description: "The furthest end that may be asked for, by `ttlSeconds` or an extension; no end is then not allowed",
    shown: "none",
  }),
  FLEET_TTL_WARNING_SECONDS: integer(0, 31_536_000)
    .default(300)
    .describe(
      "How long before an end `sandbox.expiring` tells of it, never in the first half of what is left; 0: never",
    ),
  FLEET_IDLE_SECONDS: integer(10, 31_536_000).optional().meta({
    description: "Idle time of provisions that name none: so long unused, a sandbox is paused or stopped",
    shown: "none",
  }),
  FLEET_DEMAND_REPLICAS: integer(0, 100)
    .default(2)
    .describe(
      "Replicas of a template that the fleet makes by itself, one after the other, where its nodes have no room and others have; 0: none",
    ),
  FLEET_REPLICA_IDLE_HOURS: integer(0, 87_600)
    .default(168)
    .describe("Replicas that the fleet made go so long after a sandbox was last cloned from them; 0: never"),
  FLEET_STRAY_GRACE_SECONDS: integer(0, 86_400)
    .default(60)
    .describe("How long a container that nobody can use, by proof, is left in quarantine before it is removed"),
  FLEET_ORPHAN_GRACE_HOURS: z
    .union([z.literal("never"), integer(0, 8_760)], { error: "must be a number of hours up to 8760, or never" })
    .default(24)
    .describe("The same where only the missing record says so; `never` leaves these to an operator"),
  FLEET_PLACEMENT: z
    .enum(["spread", "pack"])
    .default("spread")
    .describe("`spread`: the node with the least to do; `pack`: the fullest that has room"),
  FLEET_NODE_SANDBOXES: integer(1, 100_000)
    .optional()
    .describe("Sandboxes on one node at most (`fleet node set` for a single one)"),
  FLEET_STORAGE_FULL_PERCENT: integer(1, 100)
    .default(90)
    .describe("A storage fuller than this gets no new disks; full clones that are on their way count"),
  FLEET_MEMORY_OVERCOMMIT: z.coerce
    .number({ error: "must be a number" })
    .min(0.1)
    .max(20)
    .default(1.5)
    .describe("Promised memory over real memory of a node"),
  FLEET_DISK_OVERCOMMIT: z.coerce
    .number({ error: "must be a number" })
    .min(0.1)
    .max(50)
    .default(4)
    .describe("Promised disk over real disk of a storage"),
  FLEET_ADOPT_PREFIXES: list
    .refine((all) => all.every((one) => /^[a-zA-Z0-9][a-zA-Z0-9.-]*$/.test(one)), {
      error: "must be the beginnings of host names, comma-separated",
    })
    .prefault("pvelxc-,cmux-")
    .describe("Beginnings of host names of containers that `adopt` may take"),
  FLEET_ROLES: list
    .refine((roles) => roles.length > 0 && roles.every((role) => (ROLES as readonly string[]).includes(role)), {
      error: `must be of ${ROLES.join(", ")}`,
    })
    .transform((roles) => new Set(roles as Role[])) // just checked
    .prefault("worker,ops")
    .describe("What this process does: worker, ops, gate"),
  FLEET_SHUTDOWN_SECONDS: integer(0, 600)
    .default(20)
    .describe("How long a closing worker waits for its operations before it hands them back"),
  ...SSH_SETTINGS,
  ...WEBHOOK_SETTINGS,
  ...OPS_SETTINGS,
  ...TRACE_SETTINGS,
});

/** How long what has ended is kept; Redis counts whole seconds. */
export const retentionSecOf = ({ FLEET_RETENTION_HOURS: hours }: Pick<WorkerConfig, "FLEET_RETENTION_HOURS">): number =>
  Math.ceil(hours * 3_600);

/** How many addresses a PVE_IP_RANGE has. */
export const countAddresses = ({ first, last }: { first: string; last: string }): number =>
  toNumber(last) - toNumber(first) + 1;

/** All variables by name. Each has a description: README's table and .env.example are made of this (`npm run docs`). */
export const SETTINGS: Readonly<Record<string, z.ZodType>> = WorkerEnv.shape;
export const PRODUCER_VARIABLES = Object.keys(SharedEnv.shape);

export type SharedConfig = z.output<typeof SharedEnv>;
export type WorkerConfig = z.output<typeof WorkerEnv> & { sandboxNetworks: BlockList };

/**
 * What a producer needs, from an environment such as `process.env`.
 * Throws `not_configured`; `facts.variables` names every bad variable.
 */
export function loadSharedConfig(env: Env): SharedConfig {
  return parse(SharedEnv, env);
}

/** What a proxy in front of the gate has to know; see `loadSharedConfig`. */
export function loadGateConfig(env: Env) {
  return parse(z.object({ ...GATE_SETTINGS, PVE_PUBLIC_DOMAIN: Domain }), env);
}

/** What a worker needs; see `loadSharedConfig`. */
export function loadWorkerConfig(env: Env): WorkerConfig {
  const config = parse(WorkerEnv, env, (raw) => {
    const problems: Problem[] = [...findSshProblems(raw), ...findOpsProblems(raw)];
    const leased = raw["PVE_IP_RANGE"];
    if (leased && !raw["PVE_GATEWAY"])
      problems.push({ name: "PVE_GATEWAY", text: "is missing; leased addresses of PVE_IP_RANGE need it" });
    const range = IpRange.safeParse(leased);
    if (range.success && isIP(raw["PVE_GATEWAY"] ?? "") === 4 && isWithin(raw["PVE_GATEWAY"] ?? "", range.data))
      problems.push({ name: "PVE_IP_RANGE", text: "holds PVE_GATEWAY, which would be given to a container" });
    if (Number(raw["FLEET_TTL_DEFAULT_SECONDS"]) > Number(raw["FLEET_TTL_MAX_SECONDS"]))
      problems.push({ name: "FLEET_TTL_DEFAULT_SECONDS", text: "must be at most FLEET_TTL_MAX_SECONDS" });
    if (raw["PVE_FIREWALL_DENY"] && !raw["PVE_FIREWALL_ALLOW"])
      problems.push({ name: "PVE_FIREWALL_ALLOW", text: "is missing; PVE_FIREWALL_DENY does nothing without it" });
    return problems;
  });
  const sandboxNetworks = new BlockList();
  for (const cidr of config.SANDBOX_CIDRS) {
    const [address = "", bits = ""] = cidr.split("/");
    sandboxNetworks.addSubnet(address, Number(bits), isIP(address) === 6 ? "ipv6" : "ipv4");
  }
  return { ...config, sandboxNetworks };
}

interface Problem {
  name: string;
  text: string;
}

function parse<S extends z.ZodType>(schema: S, env: Env, check?: (raw: Env) => Problem[]): z.output<S> {
  // An empty variable is one that is not set: compose files and unit files write them so.
  const set = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = schema.safeParse(set);
  const problems: Problem[] = [
    ...(parsed.success
      ? []
      : parsed.error.issues.map((issue) => ({ name: String(issue.path[0]), text: issue.message }))),
    ...(check?.(set) ?? []),
  ];
  if (!parsed.success || problems.length > 0) {
    const lines = problems.map(({ name, text }) => `${name} ${text}`);
    throw new FleetError("not_configured", lines.length === 1 ? lines.join() : `\n  ${lines.join("\n  ")}`, {
      facts: { variables: problems.map(({ name }) => name) },
    });
  }
  return parsed.data;
}
