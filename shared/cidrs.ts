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
