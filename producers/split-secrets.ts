import type { JobName } from "../shared/jobs/index.ts";
import { jobs } from "../shared/jobs/index.ts";
import type { SecretValues } from "../shared/state/secrets.ts";

/** Parts an input into what is stored with the record and what is sealed; nothing is sealed when nothing is secret. */
export function splitSecrets(
  kind: JobName,
  input: Readonly<Record<string, unknown>>,
): { stored: Record<string, unknown>; secrets: SecretValues | undefined } {
  const secret: readonly string[] = jobs[kind].secret ?? [];
  const stored: Record<string, unknown> = {};
  const secrets: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(input)) {
    if (!secret.includes(name)) stored[name] = value;
    else if (!isEmpty(value)) secrets[name] = value;
  }
  // The specs' secret fields are the secret store's fields; its own schema parses them where they are read.
  return { stored, secrets: Object.keys(secrets).length > 0 ? (secrets as SecretValues) : undefined };
}

const isEmpty = (value: unknown): boolean =>
  value === undefined ||
  value === "" ||
  (typeof value === "object" && value !== null && Object.keys(value).length === 0);
