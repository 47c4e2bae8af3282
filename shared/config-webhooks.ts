/** The targets of webhooks. A problem names the entry and its field, never what was given: it may be a secret. */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { TeamId } from "./ids.ts";
import { EVENT_TYPES } from "./state/events.ts";

const WebhookName = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$/,
    "must be 1 to 40 lower-case letters, digits or inner hyphens, a letter first",
  );

/** As Standard Webhooks write it: `whsec_` and 24 to 64 bytes in base64. */
export const WebhookSecret = z
  .string({ error: "must be a text" })
  .regex(
    /^whsec_[A-Za-z0-9+/]+={0,2}$/,
    "must be whsec_ and base64; make one with: echo whsec_$(openssl rand -base64 32)",
  )
  .transform((text) => Buffer.from(text.slice("whsec_".length), "base64"))
  .refine(({ length }) => length >= 24 && length <= 64, {
    error: "must be 24 to 64 bytes; make one with: echo whsec_$(openssl rand -base64 32)",
  });

const Target = z
  .strictObject({
    name: WebhookName,
    url: z.url("must be a URL such as https://app.example.com/hooks/fleet").transform((text) => new URL(text)),
    /** The messages are signed with each of them, so that a receiver may go over from one to another. */
    secrets: z.array(WebhookSecret).min(1, "needs one to three").max(3, "needs one to three"),
    types: z.array(z.enum(EVENT_TYPES)).min(1, "must name at least one, or be left out for all").optional(),
    team: TeamId.optional(),
    /** Networks that are not public and may be connected to all the same. */
    allowPrivate: z
      .array(z.union([z.cidrv4(), z.cidrv6()], { error: "must be networks such as 10.0.0.0/8" }))
      .default([]),
    /** How often a delivery is tried; 15 take about a day. */
    attempts: z.int().min(1).max(30).default(15),
  })
  .superRefine(({ url, allowPrivate }, context) => {
    const refuse = (message: string) => context.addIssue({ code: "custom", path: ["url"], message });
    if (url.protocol !== "https:" && url.protocol !== "http:") refuse("must be https://");
    if (url.protocol === "http:" && allowPrivate.length === 0)
      refuse("must be https://; http:// is for networks of allowPrivate only");
    if (url.username !== "" || url.password !== "" || url.hash !== "") refuse("may hold no user, password or #");
  });

const Targets = z.array(Target, { error: "must be a JSON array" }).max(50, "has room for 50 targets");

export type WebhookTarget = z.output<typeof Target>;

/** JSON, or the file that holds it. */
const Webhooks = z.string().transform((text, context): WebhookTarget[] => {
  const refuse = (message: string) => {
    context.addIssue({ code: "custom", message });
    return z.NEVER;
  };
  const json = readJson(text);
  if (json === undefined) return refuse('must be JSON, or a readable file with it: [{"name":…,"url":…,"secrets":[…]}]');
  const parsed = Targets.safeParse(json);
  if (!parsed.success) {
    for (const { path, message } of parsed.error.issues) refuse(`${toPlace(json, path)}${message}`);
    return z.NEVER;
  }
  const names = parsed.data.map(({ name }) => name);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  return twice === undefined ? parsed.data : refuse(`has two targets named ${twice}`);
});

function readJson(text: string): unknown {
  try {
    return JSON.parse(text.trimStart().startsWith("[") ? text : readFileSync(text, "utf8"));
  } catch {
    return undefined;
  }
}

/** `entry 2 (billing), url: `; a name is shown only where it is one. */
function toPlace(json: unknown, [index, ...field]: readonly PropertyKey[]): string {
  if (typeof index !== "number") return "";
  const named = z.array(z.unknown()).safeParse(json).data?.[index];
  const { data } = z.object({ name: WebhookName }).safeParse(named);
  const entry = `entry ${index + 1}${data === undefined ? "" : ` (${data.name})`}`;
  return field.length === 0 ? `${entry}: ` : `${entry}, ${field.map(String).join(".")}: `;
}

export const WEBHOOK_SETTINGS = {
  FLEET_WEBHOOKS: Webhooks.prefault("[]").meta({
    description: "Targets of [webhooks](#webhooks): JSON, or a file with it",
    shown: "none",
  }),
};
