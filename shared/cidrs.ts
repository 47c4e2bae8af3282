/** Networks in settings: comma-separated, `ADDRESS/BITS`. */
import { isIP } from "node:net";
import { z } from "zod";

export const Cidrs = z
  .string()
  .transform((text) =>
    text
      .split(",")
      .map((part) => part.trim())
      .filter(Boolean),
  )
  .refine((all) => all.length > 0 && all.every(isCidr), { error: "must be networks such as 10.0.0.0/8,fd00::/8" });

function isCidr(text: string): boolean {
  const [address = "", bits = ""] = text.split("/");
  const family = isIP(address);
  return family !== 0 && /^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128);
}

/** Whether no bit is set beyond the mask, without which PVE's firewall takes no network (Net::IP). */
export function isNetwork(cidr: string): boolean {
  const [address = "", bits = ""] = cidr.split("/");
  return !/1/.test(toBits(address).slice(Number(bits)));
}

function toBits(address: string): string {
  const inBits = (groups: string[], base: number, width: number) =>
    groups.map((group) => Number.parseInt(group, base).toString(2).padStart(width, "0")).join("");
  if (isIP(address) === 4) return inBits(address.split("."), 10, 8);
  // In URLs an embedded IPv4 address is written as IPv6, too.
  const [head = "", tail = ""] = new URL(`http://[${address}]`).hostname.slice(1, -1).split("::");
  const [before, after] = [head, tail].map((part) => inBits(part.split(":").filter(Boolean), 16, 16));
  return `${before?.padEnd(128 - (after?.length ?? 0), "0")}${after}`;
}
