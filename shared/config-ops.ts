/** The settings of the ops pages. */
import { isIP } from "node:net";
import { z } from "zod";
import { type Login, parseLogin } from "./logins.ts";

const Logins = z.string().transform((text, context): Login[] => {
  const parsed = text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean)
    .map(parseLogin);
  const logins = parsed.filter((one) => one !== null);
  const names = new Set(logins.map(({ name }) => name));
  if (logins.length === parsed.length && names.size === logins.length) return logins;
  const message =
    names.size < logins.length
      ? "names somebody twice"
      : "must be comma-separated entries ROLE:NAME:HASH; make one with: fleet login operator NAME";
  context.addIssue({ code: "custom", message });
  return z.NEVER;
});

export const OPS_SETTINGS = {
  OPS_HOST: z
    .string()
    .default("127.0.0.1")
    .describe("Where the ops pages listen; any other than this machine's own needs `OPS_LOGINS`"),
  OPS_PORT: z.coerce
    .number({ error: "must be a port" })
    .int("must be a port")
    .min(0)
    .max(65_535)
    .default(3_000)
    .describe("Port of the ops pages"),
  OPS_LOGINS: Logins.prefault("").meta({
    description: "Who may see the ops pages, comma-separated, as `fleet login` prints them",
    example: "",
  }),
};

/** What only this machine reaches. */
export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));

/** Where others can reach the pages they need a login. */
export function findOpsProblems(raw: Readonly<Record<string, string | undefined>>): { name: string; text: string }[] {
  const host = raw["OPS_HOST"];
  if (host === undefined || isLoopback(host) || raw["OPS_LOGINS"]) return [];
  return [
    {
      name: "OPS_LOGINS",
      text: "is missing; pages that others can reach (OPS_HOST) need a login. Make one with: fleet login operator NAME",
    },
  ];
}
