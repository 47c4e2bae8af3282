/** The settings of the SSH tier. Nothing here keeps or shows what a bad value was. */
import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { z } from "zod";
import { NodeName } from "./ids.ts";
import { parseKnownHosts } from "./known-hosts.ts";

export interface SshHost {
  host: string;
  /** FLEET_SSH_PORT when absent. */
  port?: number;
}

/** A key's text as PEM, or the file that holds it. */
const PrivateKey = z.string().transform((text, context) => {
  const pem = text.includes("-----BEGIN") ? text.replaceAll("\\n", "\n") : readText(text);
  if (pem !== null && /^\s*-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(pem)) return `${pem.trim()}\n`;
  context.addIssue({
    code: "custom",
    message: "must be a private key (PEM) or a readable file with one; make one with: ssh-keygen -t ed25519",
  });
  return z.NEVER;
});

const KnownHosts = z.string().transform((path, context) => {
  const text = readText(path);
  if (text !== null) return parseKnownHosts(text);
  context.addIssue({ code: "custom", message: "must be a readable file, as ssh-keyscan -H HOST writes it" });
  return z.NEVER;
});

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

/** Comma-separated `node=value`; `null` from `parse` refuses one. */
function nodeMap<T>(parse: (value: string, before: T | undefined) => T | null, error: string) {
  return z.string().transform((text, context) => {
    const map = new Map<string, T>();
    for (const part of text.split(",").map((one) => one.trim())) {
      if (part === "") continue;
      const at = part.indexOf("=");
      const node = part.slice(0, Math.max(0, at)).trim();
      const value = NodeName.safeParse(node).success ? parse(part.slice(at + 1).trim(), map.get(node)) : null;
      if (value === null) {
        context.addIssue({ code: "custom", message: error });
        return z.NEVER;
      }
      map.set(node, value);
    }
    return map as ReadonlyMap<string, T>;
  });
}

const Hosts = nodeMap<SshHost>(
  (value, before) => (before === undefined ? parseHost(value) : null),
  "must be NODE=HOST or NODE=HOST:PORT (IPv6 as [::1]:22), comma-separated, each node once",
);

function parseHost(text: string): SshHost | null {
  if (isIP(text) === 6) return { host: text };
  const [, bracketed, plain, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text) ?? [];
  const host = bracketed ?? plain ?? "";
  const isHost =
    bracketed === undefined ? /^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?$/.test(host) : isIP(host) === 6;
  const port = digits === undefined ? undefined : Number(digits);
  if (!isHost || (port !== undefined && (port < 1 || port > 65_535))) return null;
  return port === undefined ? { host } : { host, port };
}

/** A node may have several: one a key type, or an old and a new one. */
const HostKeys = nodeMap<readonly string[]>((value, before = []) => {
  const [, digest] = /^SHA256:([A-Za-z0-9+/]{43})=?$/.exec(value) ?? [];
  return digest === undefined ? null : [...before, `SHA256:${digest}`];
}, "must be NODE=SHA256:…, comma-separated, as printed by: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");

export const SSH_SETTINGS = {
  FLEET_SSH_KEY: PrivateKey.optional().describe("Private key for the nodes, as a path or PEM; turns SSH on"),
  FLEET_SSH_KEY_PASSPHRASE: z.string().optional().describe("Passphrase of that key"),
  FLEET_SSH_USER: z
    .string()
    .regex(/^[a-z_][a-z0-9_.-]{0,31}$/i, "must be a user's name, such as root")
    .default("root")
    .describe("Whom it logs in as"),
  FLEET_SSH_PORT: z.coerce
    .number({ error: "must be a whole number" })
    .int("must be a whole number")
    .min(1)
    .max(65_535)
    .default(22)
    .describe("Where nodes listen"),
  FLEET_SSH_HOSTS: Hosts.optional().meta({
    description: "`NODE=HOST[:PORT],…`, for nodes that listen elsewhere",
    shown: "PVE's own addresses",
  }),
  FLEET_SSH_HOST_KEYS: HostKeys.optional().describe("`NODE=SHA256:…,…`: host keys to trust; no other is taken"),
  FLEET_SSH_KNOWN_HOSTS: KnownHosts.optional().describe("File of host keys to trust, as OpenSSH keeps it"),
};

/** What is wrong between settings that are each right. */
export function findSshProblems(raw: Readonly<Record<string, string | undefined>>): { name: string; text: string }[] {
  const given = ["FLEET_SSH_HOSTS", "FLEET_SSH_HOST_KEYS", "FLEET_SSH_KNOWN_HOSTS", "FLEET_SSH_KEY_PASSPHRASE"].find(
    (name) => raw[name],
  );
  if (!raw["FLEET_SSH_KEY"]) {
    return given === undefined
      ? []
      : [{ name: "FLEET_SSH_KEY", text: `is missing; ${given} is for SSH, which needs it` }];
  }
  if (raw["FLEET_SSH_HOST_KEYS"] || raw["FLEET_SSH_KNOWN_HOSTS"]) return [];
  return [
    {
      name: "FLEET_SSH_HOST_KEYS",
      text:
        "is missing; give NODE=SHA256:…, as printed on the node by ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, " +
        "or FLEET_SSH_KNOWN_HOSTS",
    },
  ];
}
