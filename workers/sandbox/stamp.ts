/**
 * The stamp: who a container is, written on the container itself by the clone request, so that a lost record or reply
 * can be made good from PVE alone. It names its own VMID, since clones inherit descriptions: a foreign stamp is void.
 */
import { z } from "zod";
import { OperationId, SandboxId, TeamId, Vmid } from "../../shared/ids.ts";

const MARK = "sandbox-fleet ";
/** Read by the template's hookscript on PVE before 9.1; see cmux-execd. */
const TOKEN_MARK = "cmux-execd-auth-token=";

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
  template: z.object({ version: z.string().optional(), source: SandboxId }).optional(),
  /** It was there before the fleet: never removed but by a destroy that somebody asked for. */
  adopted: z.literal(true).optional(),
});
export type Stamp = z.output<typeof Stamp>;

/** The description of a container: stamp, then the exec token where a hookscript reads it, then the user's text. */
export function formatDescription(
  stamp: Omit<Stamp, "v">,
  { token, text }: { token: string | null; text: string | undefined },
): string {
  const lines = [MARK + JSON.stringify({ v: 1, ...stamp })];
  if (token !== null) lines.push(TOKEN_MARK + token);
  // What the hookscript or we would take for our own never comes from a user; the hookscript looks anywhere in a line.
  const harmless = text?.replaceAll(TOKEN_MARK, `${TOKEN_MARK} `).split(/\r?\n/) ?? [];
  lines.push(...harmless.map((line) => (line.startsWith(MARK) ? `> ${line}` : line)));
  return lines.join("\n");
}

/** What stands in a description stays, behind the stamp; an earlier stamp that was valid for this VMID goes. */
export function addStamp(description: string | undefined, stamp: Omit<Stamp, "v">): string {
  return [formatDescription(stamp, { token: null, text: undefined }), removeStamp(description, stamp.vmid)]
    .filter((text) => text !== "")
    .join("\n");
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
