/** The settings of public URLs: domain, pattern, proxy and gate. */
import { z } from "zod";
import { Cidrs } from "./cidrs.ts";
import { findAmbiguity } from "./url-pattern.ts";

export const DEFAULT_URL_PATTERN = "{service}-{vmid}.{domain}";
export const UrlPattern = z
  .string()
  .regex(
    /^([a-z0-9.-]|\{(service|port|vmid|id|domain)\})+$/,
    "may hold lower-case letters, digits, '.', '-' and {service} {port} {vmid} {id} {domain}",
  )
  .refine((text) => /\{service\}|\{port\}/.test(text), {
    error: "needs {service} or {port}, else two services share a host",
  })
  .refine((text) => /\{vmid\}|\{id\}/.test(text), { error: "needs {vmid} or {id}, else two sandboxes share a host" })
  .superRefine((text, context) => {
    const ambiguity = findAmbiguity(text);
    if (ambiguity !== null)
      context.addIssue({ code: "custom", message: `${ambiguity}, else two services share a host` });
  });

export const Domain = z
  .string({ error: "is missing; give a domain of yours, such as sandbox.example.com" })
  .regex(
    /^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}$|^localhost$/,
    "must be a domain name, such as sandbox.example.com",
  );

/** Origins of the apps that embed workspaces. */
const Origins = z.string().transform((text, context) => {
  const origins = text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
  if (origins.every((one) => /^https?:\/\//.test(one) && URL.canParse(one) && new URL(one).origin === one))
    return origins;
  context.addIssue({ code: "custom", message: "must be origins such as https://app.example.com, comma-separated" });
  return z.NEVER;
});

const port = z.coerce.number({ error: "must be a port" }).int("must be a port").min(0).max(65_535);

export const GATE_SETTINGS = {
  PVE_PUBLIC_DOMAIN: Domain.optional().describe("Domain of public URLs, served by a proxy of yours"),
  PVE_URL_PATTERN: UrlPattern.default(DEFAULT_URL_PATTERN).describe("`{service}` `{port}` `{vmid}` `{id}` `{domain}`"),
  PVE_PROXY_TYPE: z
    .enum(["caddy", "cloudflare", "none"], { error: "must be caddy, cloudflare or none" })
    .default("none")
    .describe("What carries public URLs: caddy, cloudflare, or none for a proxy of your own"),
  GATE_HOST: z.string().default("127.0.0.1").describe("Where the gate (role `gate`) listens"),
  GATE_PORT: port.default(3_080).describe("Port of the gate"),
  GATE_PROXY_SECRET: z
    .string()
    .min(32, "must have at least 32 characters; make one with: openssl rand -hex 32")
    .optional()
    .describe("Shown by a proxy that asks the gate for decisions"),
  GATE_TRUSTED_PROXIES: Cidrs.prefault("127.0.0.0/8,::1/128").meta({
    description: "Networks of the proxies in front of the gate; whom these say a request is from is believed",
    shown: "loopback",
  }),
  GATE_WAKE_SECONDS: z.coerce
    .number({ error: "must be a number" })
    .int("must be whole")
    .min(1)
    .max(300)
    .default(30)
    .describe("How long a program's request waits for a sandbox that it wakes, before it is told to come again"),
  GATE_APP_ORIGINS: Origins.prefault("").describe(
    "Origins of apps whose pages may send unsafe requests to services opened by a link",
  ),
};
