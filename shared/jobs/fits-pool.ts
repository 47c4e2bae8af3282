/** Which provisions a pool may serve: those whose container is what a pool's members are. Pure. */
import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import { ProvisionInput } from "./provision.ts";

/**
 * What is kept in records or sealed, or done in the running container. All else is written into the container's config, or
 * decides where it stands; what comes to be asked for later is among that until it is named here.
 */
const WITHOUT_CONFIG: ReadonlySet<string> = new Set<keyof ProvisionInput>([
  "template",
  "team",
  "instanceId",
  "metadata",
  "env",
  "setup",
  "services",
  "ttlSeconds",
  "ttlAction",
  "idleSeconds",
  "idleAction",
  "wakeOnHttp",
  "priority",
]);

/** The pool that may serve it, by the template that the pool was set for; undefined: none. */
export function poolOf(input: ProvisionInput): string | undefined {
  const fits = Object.entries(input).every(
    ([name, value]) => WITHOUT_CONFIG.has(name) || isLinked(name, value) || isLeftOut(name, value),
  );
  return fits ? String(input.template) : undefined;
}

/** Members are linked clones, where a full one need not be. */
const isLinked = (name: string, value: unknown) => name === "clone" && value !== "full";

const fields: Readonly<Record<string, unknown>> = ProvisionInput.shape;

function isLeftOut(name: string, value: unknown): boolean {
  const field = fields[name];
  return value === undefined || (field instanceof z.ZodDefault && isDeepStrictEqual(field.def.defaultValue, value));
}
