/** Proxies in front of the gate: their configuration, and whether one that runs does what it should. */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { Argument, type Command, InvalidArgumentError, Option } from "commander";
import { loadGateConfig } from "../../../shared/config.ts";
import { FleetError } from "../../../shared/errors.ts";
import { fillPattern } from "../../../shared/urls.ts";
import { EXIT } from "../exit-codes.ts";
import { parseDurationMs } from "../parse-values.ts";
import { checkProxy } from "../proxy-check.ts";
import {
  coversAll,
  isShared,
  PROXIES,
  type ProxyName,
  TLS_MODES,
  type TlsMode,
  toProxyConfig,
  toWildcard,
} from "../proxy-configs.ts";
import type { Cli, GlobalOptions } from "../session.ts";
import { formatTable } from "../terminal.ts";

const HELP = `
It is made from PVE_PUBLIC_DOMAIN, PVE_URL_PATTERN, GATE_HOST and GATE_PORT, and holds no secret: where the proxy shows one,
it reads GATE_PROXY_SECRET from its environment.

Examples:
  fleet proxy caddy >/etc/caddy/Caddyfile
  fleet proxy caddy --tls wildcard --dns-provider cloudflare
  fleet proxy caddy --check --host web-20001.sandbox.example.com`;

interface Options extends GlobalOptions {
  gate?: string;
  tls: TlsMode;
  dnsProvider: string;
  check?: boolean;
  host?: string;
  at?: { host: string; port: number };
  ca?: string;
  timeout: number;
}

export function addProxy(program: Command, cli: Cli): void {
  const command = program
    .command("proxy")
    .summary("print the configuration of a proxy for public URLs, or check one")
    .description("Print a complete, static configuration for a proxy in front of the gate.")
    .addArgument(new Argument("<proxy>", "which one").choices(PROXIES))
    .option("--gate <host:port>", "where it reaches the gate, if not at GATE_HOST and GATE_PORT", parseHostPort)
    .addOption(new Option("--tls <mode>", "certificates of Caddy").choices(TLS_MODES).default("on-demand"))
    .option("--dns-provider <name>", "plugin for --tls wildcard", parseName, "cloudflare")
    .option("--check", "ask one that runs instead, and say what is wrong")
    .option("--host <host>", "with --check: host of an exposed service; one that nobody exposed if absent")
    .option("--at <host:port>", "with --check: connect there, whatever the name resolves to", toAddress)
    .option("--ca <file>", "with --check: certificate of the authority, for --tls internal", readCertificate)
    .option("--timeout <duration>", "with --check: for each answer", parseDurationMs, 10_000)
    .addHelpText("after", HELP)
    .action(async (proxy: ProxyName) => {
      const options = command.optsWithGlobals<Options>();
      try {
        cli.code = options.check ? await check(cli, options) : print(cli, proxy, options);
      } catch (error) {
        cli.fail(error, options);
      }
    });
}

function print(cli: Cli, proxy: ProxyName, { json, gate, tls, dnsProvider }: Options): number {
  const config = loadGateConfig(cli.env);
  const { PVE_PUBLIC_DOMAIN: domain, PVE_URL_PATTERN: pattern, GATE_HOST: host, GATE_PORT: port } = config;
  const hosts = toWildcard(pattern, domain);
  const needsOne = proxy === "traefik" || proxy === "cloudflared" || isShared(tls);
  if (needsOne && !coversAll(hosts)) {
    const text = `tls: a wildcard stands for one label, so no certificate covers ${hosts}; take caddy with --tls on-demand, or a PVE_URL_PATTERN without dots`;
    throw new FleetError("invalid_input", text, { facts: { fields: ["tls"] } });
  }
  const at = gate ?? `${host.includes(":") ? `[${host}]` : host}:${port}`;
  const text = toProxyConfig(proxy, { gate: at, domain, pattern, tls, dnsProvider });
  cli.terminal.out(json ? `${JSON.stringify({ proxy, config: text })}\n` : text);
  return EXIT.ok;
}

async function check(cli: Cli, { json, host, at, ca, timeout }: Options): Promise<number> {
  const { PVE_PUBLIC_DOMAIN: domain, PVE_URL_PATTERN: pattern } = loadGateConfig(cli.env);
  const random = randomBytes(4).toString("hex");
  // No sandbox has such a number or id, nor a service such a port.
  const nobody = fillPattern(
    pattern,
    { name: `check-${random}`, port: 65_535 },
    { id: `none-${random}`, vmid: 999_999_999 },
    domain,
  );
  const findings = await checkProxy({
    host: host ?? nobody,
    isExposed: host !== undefined,
    at,
    ca,
    timeoutMs: timeout,
  });
  const { paint } = cli.terminal;
  const rows = findings.map(({ check: name, ok, text }) => [
    ok ? paint("green", "ok") : paint("red", "problem"),
    name,
    text,
  ]);
  cli.terminal.out(json ? `${JSON.stringify(findings)}\n` : formatTable(["RESULT", "CHECK", "SAYS"], rows));
  return findings.every(({ ok }) => ok) ? EXIT.ok : EXIT.failed;
}

function toAddress(text: string): { host: string; port: number } {
  const [, host = "", port = ""] = /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})$/.exec(text) ?? [];
  if (host === "" || Number(port) > 65_535) throw new InvalidArgumentError("must be HOST:PORT");
  return { host: host.replace(/[[\]]/g, ""), port: Number(port) };
}

function parseHostPort(text: string): string {
  toAddress(text);
  return text;
}

function readCertificate(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    throw new InvalidArgumentError("must be a file that can be read");
  }
}

function parseName(text: string): string {
  if (!/^[a-z0-9-]+$/.test(text)) throw new InvalidArgumentError("must be a plugin's name, such as cloudflare");
  return text;
}
