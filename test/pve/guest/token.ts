import type { Container } from "../container.ts";
import type { PveVersion } from "../options.ts";

/** What `cmux-lxc-execd-token-hook.sh` greps for in the container's config file: the first marker wins. */
const MARKER = /cmux-execd-auth-token=([a-f0-9]{64})/;
const VARIABLE = "CMUX_EXECD_AUTH_TOKEN=";

/**
 * The token that a starting container is handed through its environment: from the config's `env` (9.1 and later), or by
 * the template's hookscript from the description. Undefined when neither gives one; a hook that fails lets it boot too.
 */
export function handedToken(container: Container, version: PveVersion, hookFails: boolean): string | undefined {
  const variables = (container.config.get("env") ?? "").split("\0");
  const fromEnv = variables.find((line) => line.startsWith(VARIABLE))?.slice(VARIABLE.length);
  if (version === "9.2" && fromEnv) return fromEnv;
  if (!container.config.get("hookscript")?.includes("execd-token-hook") || hookFails) return undefined;
  return MARKER.exec(container.config.get("description") ?? "")?.[1];
}
