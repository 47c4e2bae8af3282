/**
 * The stamp: who a container is, written on the container itself by the clone request, so that a lost record or reply
 * can be made good from PVE alone. It names its own VMID, since clones inherit descriptions: a foreign stamp is void.
 */
import { z } from "zod";
import { InstanceId, OperationId, SandboxId, ServiceName, TeamId, Vmid } from "../../shared/ids.ts";
import { IdleAction, ServiceAuth, TtlAction } from "../../shared/jobs/fields.ts";
import type { SandboxRecord } from "../../shared/state/records.ts";

const MARK = "sandbox-fleet ";
/** Read by the template's hookscript on PVE before 9.1; see cmux-execd. */
const TOKEN_MARK = "cmux-execd-auth-token=";

/** PVE's limit of a description, in characters. */
export const DESCRIPTION_LIMIT = 8_192;

/** What a record says of its sandbox and PVE does not know: all that a rebuild needs beside the container itself. */
const Facts = z.object({
  template: z.string(),
  instanceId: InstanceId.optional(),
  /** Of what its caller asked for under that name. */
  inputHash: z.string().optional(),
  /** Without their URLs, which follow from these. */
  services: z.array(z.object({ name: ServiceName, port: z.number(), auth: ServiceAuth, epoch: z.string() })),
  metadata: z.record(z.string(), z.string()),
  ttlSeconds: z.number().optional(),
  ttlAction: TtlAction,
  ttlExtendOnUse: z.boolean().default(false),
  expiresAt: z.number().optional(),
  idleSeconds: z.number().optional(),
  idleAction: IdleAction,
  wakeOnHttp: z.boolean(),
  /** How many there was no room for. */
  cut: z.object({ metadata: z.number(), services: z.number() }).optional(),
});
export type StampFacts = z.output<typeof Facts>;

const Stamp = z.object({
  v: z.literal(1),
  fleet: z.string(),
  vmid: Vmid,
  sandbox: SandboxId,
  operation: OperationId,
  team: TeamId,
  /** When the operation was accepted, ms since the epoch. */
  at: z.number(),
  /** Of the Redis that it was accepted in; see `Strays.origin`. */
  origin: z.string().optional(),
  /** Of a template. */
  template: z.object({ version: z.string().optional(), source: SandboxId.optional() }).optional(),
  /** It is a replica of this template, as that was then. */
  copyOf: z.object({ vmid: Vmid, configHash: z.string(), team: TeamId.optional() }).optional(),
  /** It was there before the fleet: never removed but by a destroy that somebody asked for. */
  adopted: z.literal(true).optional(),
  /** As the record was some seconds ago. Those of another version are none, and the stamp holds all the same. */
  facts: Facts.optional().catch(undefined),
});
export type Stamp = z.output<typeof Stamp>;

export function toFacts(sandbox: SandboxRecord, inputHash?: string): StampFacts {
  const {
    template,
    instanceId,
    metadata,
    ttlSeconds,
    ttlAction,
    ttlExtendOnUse,
    expiresAt,
    idleSeconds,
    idleAction,
    wakeOnHttp,
  } = sandbox;
  // In one order, so that the same facts are the same text.
  const services = [...sandbox.services].sort((a, b) => (a.name < b.name ? -1 : 1));
  return {
    template,
    instanceId,
    inputHash,
    services: services.map(({ name, port, auth, epoch }) => ({ name, port, auth, epoch })),
    metadata: Object.fromEntries(Object.entries(metadata).sort(([a], [b]) => (a < b ? -1 : 1))),
    ttlSeconds,
    ttlAction,
    ttlExtendOnUse,
    expiresAt,
    idleSeconds,
    idleAction,
    wakeOnHttp,
  };
}

/** The stamp as a line of at most so many characters: where that is too few, the longest metadata go, then services. */
function formatStamp(stamp: Omit<Stamp, "v">, room: number): string {
  let { facts } = stamp;
  while (true) {
    const line = MARK + JSON.stringify({ v: 1, ...stamp, facts });
    if (line.length <= room || facts === undefined) return line;
    facts = withLess(facts);
  }
}

/** Without the longest of what it can do without; undefined when nothing is left. */
function withLess(facts: StampFacts): StampFacts | undefined {
  const { metadata, services, cut = { metadata: 0, services: 0 } } = facts;
  const length = (name: string) => name.length + (metadata[name]?.length ?? 0);
  const [longest] = Object.keys(metadata).sort((a, b) => length(b) - length(a));
  if (longest !== undefined) {
    const { [longest]: _cut, ...rest } = metadata;
    return { ...facts, metadata: rest, cut: { ...cut, metadata: cut.metadata + 1 } };
  }
  if (services.length === 0) return undefined;
  return { ...facts, services: services.slice(0, -1), cut: { ...cut, services: cut.services + 1 } };
}

/** The description of a container: stamp, then the exec token where a hookscript reads it, then the user's text. */
export function formatDescription(
  stamp: Omit<Stamp, "v">,
  { token, text }: { token: string | null; text: string | undefined },
): string {
  const lines = token === null ? [] : [TOKEN_MARK + token];
  // What the hookscript or we would take for our own never comes from a user; the hookscript looks anywhere in a line.
  const harmless = text?.replaceAll(TOKEN_MARK, `${TOKEN_MARK} `).split(/\r?\n/) ?? [];
  lines.push(...harmless.map((line) => (line.startsWith(MARK) ? `> ${line}` : line)));
  return withStamp(stamp, lines);
}

/** Facts for which there is no room are left out; what is not the stamp's is never touched. */
function withStamp(stamp: Omit<Stamp, "v">, others: readonly string[]): string {
  const rest = others.join("\n");
  return [formatStamp(stamp, DESCRIPTION_LIMIT - rest.length - 1), ...others].join("\n");
}

/** What stands in a description stays, behind the stamp; an earlier stamp that was valid for this VMID goes. */
export function addStamp(description: string | undefined, stamp: Omit<Stamp, "v">): string {
  const rest = removeStamp(description, stamp.vmid);
  return withStamp(stamp, rest === "" ? [] : [rest]);
}

/** The same description with another stamp in the place of the one that it has. */
export function replaceStamp(description: string, stamp: Omit<Stamp, "v">): string {
  const lines = description.trimEnd().split("\n");
  const at = lines.findIndex((line) => line.startsWith(MARK));
  const others = lines.toSpliced(at, 1).join("\n");
  return lines.with(at, formatStamp(stamp, DESCRIPTION_LIMIT - others.length - 1)).join("\n");
}

/** The description without stamps that are valid for this VMID. */
export function removeStamp(description: string | undefined, vmid: number): string {
  const lines = (description ?? "").trimEnd().split("\n");
  return lines.filter((line) => parseStamp(line, vmid) === null).join("\n");
}

/** The exec token in a description, as the hookscript finds it: the first, anywhere in a line. */
export const readToken = (description: string | undefined): string | undefined =>
  new RegExp(`${TOKEN_MARK}([a-f0-9]{64})`).exec(description ?? "")?.[1];

export const hasToken = (description: string | undefined, token: string): boolean =>
  description?.split("\n").includes(TOKEN_MARK + token) === true;

/** The same description with another exec token. */
export function replaceToken(description: string | undefined, token: string): string {
  const [stamp = "", ...rest] = (description ?? "").trimEnd().split("\n");
  return [stamp, TOKEN_MARK + token, ...rest.filter((line) => !line.startsWith(TOKEN_MARK))].join("\n");
}

/** The stamp in a description, or null where there is none that is valid for this VMID. */
export function parseStamp(description: string | undefined, vmid: number): Stamp | null {
  const line = description?.split("\n").find((one) => one.startsWith(MARK));
  if (line === undefined) return null;
  try {
    const stamp = Stamp.safeParse(JSON.parse(line.slice(MARK.length)));
    return stamp.success && stamp.data.vmid === vmid ? stamp.data : null;
  } catch {
    return null;
  }
}
