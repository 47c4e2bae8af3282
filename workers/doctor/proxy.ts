/** Public URLs as their visitors see them: names, certificate, proxy and gate, at the URL of a service that is exposed. */

import { checkProxy } from "../../producers/cli/proxy-check.ts";
import { createFleet } from "../../producers/index.ts";
import type { WorkerConfig } from "../../shared/config.ts";
import { fillPattern } from "../../shared/urls.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";

const ANSWER_MS = 5_000;

export async function examineProxy(config: WorkerConfig, domain: string): Promise<Finding[]> {
  const exposed = await findExposed(config);
  const nobody = fillPattern(
    config.PVE_URL_PATTERN,
    { name: "doctor", port: 65_535 },
    { id: "doctor", vmid: 999_999_999 },
    domain,
  );
  const findings = await checkProxy({
    host: exposed ?? nobody,
    isExposed: exposed !== null,
    timeoutMs: ANSWER_MS,
  });
  return findings.map(({ check, ok: fine, text }) => {
    const at = `proxy.${check.replaceAll(" ", "_")}`;
    if (fine) return ok(at, text);
    // A proxy that makes certificates on demand has none for a host that nobody exposed.
    const unclear = check === "certificate" && exposed === null;
    return unclear
      ? warning(at, text, "Expose a service, then ask the doctor again")
      : problem(at, text, "fleet proxy caddy (or cloudflared, traefik, …) prints a configuration that works");
  });
}

/** Null where no sandbox that runs has a public URL. */
async function findExposed(config: WorkerConfig): Promise<string | null> {
  await using fleet = createFleet({ redis: config.REDIS_URL, prefix: config.FLEET_PREFIX });
  const running = await fleet.sandboxes.list({ state: "running" });
  const service = running.flatMap(({ services }) => services).find(({ level }) => level === "public");
  return service === undefined ? null : new URL(service.url).hostname;
}
