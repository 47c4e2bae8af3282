import { randomUUID } from "node:crypto";
import type { PveVersion } from "./options.ts";
import { parseProperties } from "./property-string.ts";
import { forbidden, Refusal } from "./refusal.ts";
import type { TokenChange, TokenSpec } from "./views.ts";
import type { World } from "./world.ts";

/** Who asks. Tokens only: the stand-in has no passwords and no tickets. */
export interface Identity {
  user: string;
  tokenid: string;
  /** "all" is root@pam's token without privilege separation. */
  privileges: "all" | Record<string, string[]>;
  disabled: boolean;
  expired: boolean;
}

export function addToken(world: World, spec: TokenSpec & { all?: boolean }): string {
  const secret = randomUUID();
  const name = `${spec.user}!${spec.id}`;
  world.tokens.set(name, {
    user: spec.user,
    tokenid: spec.id,
    privileges: spec.all ? "all" : spec.privileges,
    disabled: spec.disabled ?? false,
    expired: spec.expired ?? false,
    secret,
  });
  return `${name}=${secret}`;
}

/** What an administrator does to a token while it is in use; null removes it. */
export function changeToken(world: World, token: string, change: TokenChange | null): void {
  const name = token.split("=")[0] ?? "";
  const entry = world.tokens.get(name);
  if (entry === undefined) throw new Error(`there is no token ${name}`);
  if (change === null) world.tokens.delete(name);
  else world.tokens.set(name, { ...entry, ...change });
}

function unauthorized(version: PveVersion, why: string): Refusal {
  return new Refusal(401, version === "9.2" ? "Authentication failed!" : why);
}

/** Reads `Authorization: PVEAPIToken=USER@REALM!TOKENID=UUID`. */
export function authenticate(world: World, header: string | undefined): Identity {
  const token = /(?:^|\s)PVEAPIToken[= ]([^;]*)/.exec(header ?? "")?.[1];
  const fail = (why: string) => unauthorized(world.version, why);
  if (token === undefined) throw fail("No ticket");
  const at = token.indexOf("=");
  const name = at < 0 ? token : token.slice(0, at);
  const [user, tokenid] = name.split("!");
  if (user === undefined || tokenid === undefined || tokenid === "") throw fail("no tokenid specified");
  const known = [...world.tokens.values()].filter((entry) => entry.user === user);
  if (known.length === 0) throw fail(`no such user ('${user}')`);
  if (known.some((entry) => entry.disabled)) throw fail(`user '${user}' is disabled`);
  const entry = world.tokens.get(name);
  if (entry === undefined) throw fail(`no such token '${tokenid}' for user '${user}'`);
  if (entry.expired) throw fail(`token '${tokenid}' access expired`);
  if (entry.secret !== token.slice(at + 1)) throw fail("invalid token value!");
  return entry;
}

/** The privileges on a path: the nearest path above that names any. */
function inherited(privileges: Record<string, string[]>, path: string): string[] {
  let at = path;
  for (;;) {
    const found = privileges[at];
    if (found !== undefined) return found;
    if (at === "/" || at === "") return [];
    at = at.slice(0, at.lastIndexOf("/")) || "/";
  }
}

export function has(world: World, by: Identity, path: string, privilege: string): boolean {
  if (by.privileges === "all") return true;
  if (inherited(by.privileges, path).includes(privilege)) return true;
  const vmid = /^\/vms\/(\d+)$/.exec(path)?.[1];
  const pool = vmid === undefined ? undefined : world.poolOf(Number(vmid));
  return pool !== undefined && inherited(by.privileges, `/pool/${pool}`).includes(privilege);
}

/** Throws PVE's 403 for the first privilege that is missing. */
export function check(world: World, by: Identity, path: string, ...privileges: string[]): void {
  for (const privilege of privileges) {
    if (!has(world, by, path, privilege)) throw forbidden(`${path}, ${privilege}`);
  }
}

export function checkAny(world: World, by: Identity, path: string, ...privileges: string[]): void {
  if (privileges.some((privilege) => has(world, by, path, privilege))) return;
  throw forbidden(`${path}, ${privileges.join("|")}`);
}

/** PVE::LXC::check_bridge_access: each bridge that a container is put on, with its VLAN where it has one. */
export function checkBridge(world: World, by: Identity, network: string): void {
  const { bridge, tag } = Object.fromEntries(parseProperties(network));
  if (bridge === undefined) return;
  check(world, by, `/sdn/zones/localnetwork/${bridge}${tag === undefined ? "" : `/${tag}`}`, "SDN.Use");
}
