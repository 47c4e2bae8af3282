/** What an operator deploys by: each name in it must be one that the code has. */
import { readdirSync, readFileSync } from "node:fs";
import type { Command } from "commander";
import { expect, test } from "vitest";
import { z } from "zod";
import { createProgram } from "../../../producers/cli/program.ts";
import { toProxyConfig } from "../../../producers/cli/proxy-configs.ts";
import { type Cli, createCli } from "../../../producers/cli/session.ts";
import { toEnvExample, toReadme } from "../../../scripts/settings.ts";
import { loadWorkerConfig } from "../../../shared/config.ts";
import { DEFAULT_URL_PATTERN } from "../../../shared/config-gate.ts";
import { POLICY } from "../../../shared/errors.ts";
import { PRIVILEGES, ROLE } from "../../../workers/doctor/privileges.ts";
import { createMetrics } from "../../../workers/metrics.ts";

const read = (path: string) => readFileSync(new URL(`../../../${path}`, import.meta.url), "utf8");
const ALERTS = read("deploy/prometheus/alerts.yml");
const OPERATIONS = read("docs/operations.md");

const NEEDED = {
  REDIS_URL: "redis://localhost",
  FLEET_SECRET_KEY: "ab".repeat(32),
  PVE_API_URL: "https://pve1:8006",
  PVE_API_TOKEN: "fleet@pve!worker=12345678-1234-1234-1234-123456789abc",
};

const metricsIn = (text: string) => [...new Set(text.match(/\bfleet_[a-z_]+/g))];

test("rules and dashboard ask for metrics that there are, with labels that they have", async () => {
  const gauges = [...read("workers/ops/fleet-gauges.ts").matchAll(/(?:gauge|total)\("(fleet_\w+)"/g)].map(
    ([, name]) => name,
  );
  const counted = (await createMetrics().registry.getMetricsAsJSON()).map(({ name }) => name);
  const known = new Set([...gauges, ...counted, ...counted.map((name) => `${name}_bucket`)]);
  expect(gauges.length).toBeGreaterThan(10);
  const panels = z
    .object({ panels: z.array(z.object({ targets: z.array(z.object({ expr: z.string() })) })) })
    .parse(JSON.parse(read("deploy/grafana/fleet.json")));
  const exprs = panels.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));
  const asked = metricsIn([ALERTS, ...exprs].join("\n"));
  expect(asked.filter((name) => !known.has(name))).toEqual([]);
  // What nobody looks at need not be there.
  expect(gauges.filter((name) => !asked.includes(name ?? ""))).toEqual([]);
});

test("each alert has its section, and each section of alerts an alert", () => {
  const alerts = [...ALERTS.matchAll(/- alert: (\w+)/g)].map(([, name]) => name);
  const links = [...ALERTS.matchAll(/runbook_url: docs\/operations\.md#(\w+)/g)].map(([, name]) => name);
  const sections = [...OPERATIONS.matchAll(/^### (Fleet\w+)$/gm)].map(([, name]) => name);
  expect(links).toEqual(alerts.map((name) => name?.toLowerCase()));
  expect(sections.toSorted()).toEqual(alerts.toSorted());
});

test("each error code has a line, with the policy that it has", () => {
  const lines = [...OPERATIONS.matchAll(/^\| `(\w+)` +\| (\w+) +\| \S/gm)].map(([, code, policy]) => [code, policy]);
  expect(Object.fromEntries(lines)).toEqual(POLICY);
});

test("README's role and the table of privileges are those that the doctor looks for", () => {
  const role = /pveum role add Fleet -privs "([^"]+)"/.exec(read("README.md"))?.[1]?.replaceAll("\\\n", "").split(" ");
  expect(role?.toSorted()).toEqual(ROLE.toSorted());
  const rows = [...OPERATIONS.matchAll(/^\| `((?:VM|Datastore|SDN|Pool|Sys)\.[\w.]+)` +\| (.+?) +\| (.+?) +\|$/gm)];
  expect(rows.map(([, name, on, lost]) => [name, on?.replace(/: `.*`$|`/g, ""), lost])).toEqual(
    PRIVILEGES.map(({ name, on, lost }) => [name, on, lost]),
  );
});

test("each command of ours in the docs is one, with the options that it has", () => {
  const terminal = { out: () => {}, err: () => {} } as unknown as Cli["terminal"]; // nothing is run
  const program = createProgram(createCli({ terminal, env: {}, exit: () => {} }));
  const texts = ["README.md", "docs/operations.md", "deploy/prometheus/alerts.yml"].map(read);
  const lines = texts.flatMap((text) =>
    [...text.matchAll(/(?:`|^|\n|[|] )fleet ([a-z][^`#\n]*)/g)].map(([, line = ""]) => line),
  );
  expect(lines.length).toBeGreaterThan(80);
  for (const line of lines) {
    const [words = ""] = line.split(/ -- /);
    const known: string[] = ["--help"];
    let at: Command = program;
    for (const word of words.trim().split(/\s+/)) {
      if (word.startsWith("--")) {
        known.push(...[at, program].flatMap(({ options }) => options.map(({ long }) => String(long))));
        expect([line, known]).toEqual([line, expect.arrayContaining([word.replace(/[=,).;:].*$/, "")])]);
      } else if (at.commands.length > 0) {
        const next = at.commands.find((one) => one.name() === word || one.aliases().includes(word));
        if (next) at = next;
        else expect([line, word, at.registeredArguments.length > 0]).toEqual([line, word, true]);
      }
    }
  }
});

test("README's table and .env.example are what `npm run docs` makes of the settings", () => {
  const lost = "is not what the settings say; run: npm run docs";
  expect(read("README.md") === toReadme(read("README.md")), `README.md ${lost}`).toBe(true);
  expect(read(".env.example") === toEnvExample(), `.env.example ${lost}`).toBe(true);
});

test("what .env.example says is a default is one; what compose asks for is in it", () => {
  const lines = [...read(".env.example").matchAll(/^(#?)([A-Z_]+)=(.*)$/gm)];
  const defaults = lines.filter(([, hash]) => hash === "#").map(([, , name, value]) => [name, value]);
  expect(loadWorkerConfig({ ...Object.fromEntries(defaults), ...NEEDED })).toEqual(loadWorkerConfig(NEEDED));
  const asked = [...read("docker-compose.yml").matchAll(/(?<!\$)\$\{([A-Z_]+)/g)].map(([, name]) => name);
  const names = new Set(lines.map(([, , name]) => name));
  expect(asked.filter((name) => !names.has(name))).toEqual([]);
});

test("the Caddyfile is the one that fleet proxy prints", () => {
  const domain = "sandbox.example.com";
  const settings = {
    gate: "gate:3080",
    domain,
    pattern: DEFAULT_URL_PATTERN,
    tls: "on-demand",
    dnsProvider: "",
  } as const;
  const printed = toProxyConfig("caddy", settings).replace(domain, "{$PVE_PUBLIC_DOMAIN}");
  expect(read("deploy/caddy/Caddyfile").replace(/^.*\n/, "")).toBe(printed);
});

test("whatever stops a worker leaves it more time than it asks for", () => {
  const { FLEET_SHUTDOWN_SECONDS } = loadWorkerConfig(NEEDED);
  const units = readdirSync(new URL("../../../deploy/systemd", import.meta.url)).filter((name) =>
    /service$/.test(name),
  );
  const grace = [
    ...units.map((name) => /^TimeoutStopSec=(\d+)$/m.exec(read(`deploy/systemd/${name}`))?.[1]),
    /stop_grace_period: (\d+)s/.exec(read("docker-compose.yml"))?.[1],
  ];
  expect(grace).toHaveLength(4);
  for (const seconds of grace) expect(Number(seconds)).toBeGreaterThan(FLEET_SHUTDOWN_SECONDS + 10);
});
