/** The public URLs that the ports of a cmux workspace have. */
import { z } from "zod";
import { Domain, UrlPattern } from "../../shared/config-gate.ts";
import { FleetError } from "../../shared/errors.ts";
import { CMUX_SERVICES } from "../../shared/jobs/adopt.ts";
import { fillPattern, hostLabel } from "../../shared/urls.ts";

const Settings = z.object({ publicDomain: Domain.optional(), pattern: UrlPattern.optional() });

const NAMES: Record<string, string> = { publicDomain: "PVE_PUBLIC_DOMAIN", pattern: "PVE_URL_PATTERN" };

/** Throws `not_configured` that names what is wrong. */
export function checkUrlSettings(
  raw: Record<"publicDomain" | "pattern", string | undefined>,
): z.output<typeof Settings> {
  const parsed = Settings.safeParse(raw);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(({ path, message }) => ({ name: NAMES[String(path[0])] ?? "", message }));
  const text = problems.map(({ name, message }) => `${name} ${message}`).join("; ");
  throw new FleetError("not_configured", text, { facts: { variables: problems.map(({ name }) => name) } });
}

/**
 * The public URL of a port, as the workers make it; null where there is no public domain, or the pattern asks for what the
 * port or the host id does not tell. Pure.
 */
export function toPublicUrl(
  port: number,
  hostId: string,
  { publicDomain, pattern }: { publicDomain?: string | undefined; pattern: string },
): string | null {
  if (publicDomain === undefined) return null;
  const service = CMUX_SERVICES.find((one) => one.port === port);
  const id = toHostId(hostId);
  const vmid = /^(?:cmux-)?(\d+)$/.exec(id)?.[1];
  if (pattern.includes("{service}") && service === undefined) return null;
  if (pattern.includes("{vmid}") && vmid === undefined) return null;
  return `https://${fillPattern(pattern, { name: service?.name ?? "", port }, { id, vmid: Number(vmid) }, publicDomain)}`;
}

/** An instance id as host names have it. */
export const toHostId = (id: string): string => hostLabel(id.trim());
