/** What is wrong or unwise in the settings by themselves. */
import { loadWorkerConfig, type WorkerConfig } from "../../shared/config.ts";
import { FleetError } from "../../shared/errors.ts";
import { type Finding, ok, problem, warning } from "./finding.ts";

type Env = Readonly<Record<string, string | undefined>>;

/** The settings, or a problem for each bad variable. */
export function examineSettings(env: Env): { config: WorkerConfig | null; findings: Finding[] } {
  try {
    const config = loadWorkerConfig(env);
    return { config, findings: judgeSettings(config) };
  } catch (error) {
    if (!(error instanceof FleetError)) throw error;
    const lines = error.text.trim().split(/\n\s*/);
    return { config: null, findings: lines.map((line) => problem("settings", line)) };
  }
}

function judgeSettings(config: WorkerConfig): Finding[] {
  const findings: Finding[] = [];
  const { PVE_PUBLIC_DOMAIN: domain, PVE_VERIFY_TLS, PVE_TLS_FINGERPRINT } = config;
  if (!PVE_VERIFY_TLS && PVE_TLS_FINGERPRINT === undefined)
    findings.push(
      warning(
        "settings.tls",
        "PVE's certificate is not verified: who is in between gets the token",
        "Unset PVE_VERIFY_TLS and set PVE_TLS_FINGERPRINT, as `pvenode cert info` on a node prints it, or PVE_CA_FILE",
      ),
    );
  const domains = domain === undefined ? [] : judgeDomains(domain, config);
  return [ok("settings", "complete"), ...findings, ...domains];
}

/** What runs in a sandbox may set cookies for its whole domain, and is of one site with all of it. */
function judgeDomains(domain: string, { OPS_HOST, GATE_APP_ORIGINS }: WorkerConfig): Finding[] {
  const check = "settings.domains";
  const isUnder = (host: string) => host === domain || host.endsWith(`.${domain}`);
  const apps = GATE_APP_ORIGINS.filter((origin) => isUnder(new URL(origin).hostname));
  const faults = [
    ...(isUnder(OPS_HOST)
      ? [
          problem(
            check,
            `the ops pages are at ${OPS_HOST}, under the sandboxes' domain`,
            `Serve them outside of ${domain}`,
          ),
        ]
      : []),
    ...apps.map((app) =>
      problem(check, `the app ${app} is under the sandboxes' domain ${domain}`, "Give sandboxes a domain of their own"),
    ),
  ];
  return faults.length > 0 ? faults : [ok(check, `ops pages and apps are outside of ${domain}`)];
}
