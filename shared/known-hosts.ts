/** OpenSSH's known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): hashed names, `[host]:port`, patterns, @revoked. */
import { createHmac } from "node:crypto";

export interface KnownHost {
  marker: "@revoked" | null;
  /** One of `|1|salt|hash` (one name, hashed), or comma-separated patterns. */
  names: string;
  /** `ssh-ed25519`, … */
  type: string;
  /** The key as it goes over the wire, base64. */
  key: string;
}

/** Lines that are no entry are passed over, as OpenSSH does; @cert-authority too: host certificates are not used here. */
export function parseKnownHosts(text: string): KnownHost[] {
  return text.split(/\r?\n/).flatMap((line): KnownHost[] => {
    if (/^\s*(#|$)/.test(line)) return [];
    const words = line.trim().split(/[ \t]+/);
    const marker = words[0]?.startsWith("@") ? words.shift() : undefined;
    const [names, type, key] = words;
    if (!names || !type || !key || !/^[A-Za-z0-9+/]+=*$/.test(key)) return [];
    if (marker !== undefined && marker !== "@revoked") return [];
    return [{ marker: marker ?? null, names, type, key }];
  });
}

/** The entries for a host as OpenSSH looks it up: by its plain name on port 22, else by `[host]:port`. */
export function findKnownHosts(all: readonly KnownHost[], host: string, port: number): KnownHost[] {
  const name = port === 22 ? host.toLowerCase() : `[${host.toLowerCase()}]:${port}`;
  return all.filter(({ names }) => (names.startsWith("|") ? isHashOf(names, name) : fits(names, name)));
}

function isHashOf(hashed: string, name: string): boolean {
  const [, version, salt, hash] = hashed.split("|");
  if (version !== "1" || !salt || !hash) return false;
  return createHmac("sha1", Buffer.from(salt, "base64")).update(name).digest("base64") === hash;
}

/** Any pattern fits, and no negated one does. */
function fits(names: string, name: string): boolean {
  const patterns = names.toLowerCase().split(",");
  const matches = (pattern: string) => toRegExp(pattern).test(name);
  if (patterns.some((pattern) => pattern.startsWith("!") && matches(pattern.slice(1)))) return false;
  return patterns.some((pattern) => !pattern.startsWith("!") && matches(pattern));
}

const toRegExp = (pattern: string) =>
  new RegExp(
    `^${pattern
      .replaceAll(/[\\^$+.()|{}[\]]/g, "\\$&")
      .replaceAll("*", ".*")
      .replaceAll("?", ".")}$`,
  );
