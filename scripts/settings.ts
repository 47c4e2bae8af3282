/**
 * Writes what tells people of the settings, from the schema that reads them: README's table and .env.example
 * (`npm run docs`). A test compares both with what this makes.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { z } from "zod";
import { PRODUCER_VARIABLES, SETTINGS } from "../shared/config.ts";
import { GATE_SETTINGS } from "../shared/config-gate.ts";
import { TRACE_SETTINGS } from "../shared/config-traces.ts";

const Meta = z.object({
  description: z.string(),
  /** What README calls a default that is no value, or too long a one. */
  shown: z.string().optional(),
  /** What .env.example has without a #: it is needed, or should be there. */
  example: z.string().optional(),
});

type Setting = z.output<typeof Meta> & { name: string; needed: boolean; value: string };

const settings = Object.entries(SETTINGS).map(([name, schema]): Setting => {
  const meta = Meta.safeParse(schema.meta());
  if (!meta.success) throw new Error(`${name} has no description: shared/config*.ts, .describe("…") as its last call`);
  const hasDefault = schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault;
  const value = hasDefault ? schema.def.defaultValue : "";
  return {
    ...meta.data,
    name,
    needed: !schema.safeParse(undefined).success,
    value: typeof value === "boolean" ? String(Number(value)) : String(value),
  };
});

function toCells({ name, needed, value, shown, description }: Setting): string[] {
  const plain = shown ?? (/^[\w,/.-]*$/.test(value) ? value : `\`${value}\``);
  const cell = needed ? (isProducers(name) && name !== "REDIS_URL" ? "(workers)" : "(needed)") : plain;
  return [`\`${name}\``, cell, description];
}

const isProducers = (name: string) => PRODUCER_VARIABLES.includes(name);

const NUMBERS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight"];

function toTable(): string {
  const rows = [["variable", "default", "meaning"], ...settings.map(toCells)];
  const widths = [0, 1, 2].map((at) => Math.max(...rows.map((cells) => cells[at]?.length ?? 0)));
  const toLine = (cells: readonly string[]) =>
    `| ${cells.map((cell, at) => cell.padEnd(widths[at] ?? 0)).join(" | ")} |`;
  const [head = [], ...body] = rows;
  return [
    `Producers read only the first ${NUMBERS[PRODUCER_VARIABLES.length]}.`,
    "",
    ...[head, widths.map((width) => "-".repeat(width)), ...body].map(toLine),
  ].join("\n");
}

const START = "<!-- settings: made by `npm run docs` -->";
const END = "<!-- end of settings -->";

/** README.md with the table as it should be. */
export function toReadme(readme: string): string {
  const [before = "", rest] = readme.split(START);
  const after = rest?.split(END)[1];
  if (after === undefined) throw new Error(`README.md needs ${START} and ${END}`);
  return `${before}${START}\n\n${toTable()}\n\n${END}${after}`;
}

/** In this order; each setting stands in the first group that takes it. */
const GROUPS: readonly [string, (setting: Setting) => boolean][] = [
  ["needed, or better there", ({ example }) => example !== undefined],
  [
    "the fleet",
    ({ name }) => /^(FLEET|LOG)_/.test(name) && !name.startsWith("FLEET_SSH_") && !(name in TRACE_SETTINGS),
  ],
  ["Proxmox VE", ({ name }) => /^(PVE|SANDBOX)_/.test(name) && !(name in GATE_SETTINGS)],
  ["SSH to the nodes", ({ name }) => name.startsWith("FLEET_SSH_")],
  ["ops pages", ({ name }) => name.startsWith("OPS_")],
  ["traces (OpenTelemetry); OTEL_EXPORTER_OTLP_HEADERS and the like hold, too", ({ name }) => name in TRACE_SETTINGS],
  ["public URLs and the gate", () => true],
];

const HEAD = `# Settings of the workers, as docker compose and the systemd units read them. What stands behind # is the default.
# Keep the copy to its owner: chmod 600 .env

# ---- docker compose ${"-".repeat(99)}
# It sets REDIS_URL itself, from this password (URL-safe: openssl rand -hex 24)
REDIS_PASSWORD=
# For producers on this host, who are the user fleet-producer: redis://fleet-producer:PASSWORD@127.0.0.1:6379
#REDIS_PRODUCER_PASSWORD=
# Where they reach it, on this host only
#REDIS_PORT=6379
`;

/** The text of .env.example. */
export function toEnvExample(): string {
  const left = new Set(settings);
  const groups = GROUPS.map(([title, isIn]) => {
    const own = [...left].filter(isIn);
    for (const one of own) left.delete(one);
    return [`# ---- ${title} `.padEnd(119, "-"), ...own.flatMap(toLines), ""].join("\n");
  });
  return `${HEAD}\n${groups.join("\n").trimEnd()}\n`;
}

function toLines({ name, example, value, shown, description }: Setting): string[] {
  const text = description.replaceAll(/\[(.+?)\]\(.+?\)/g, "$1").replaceAll("`", "");
  const without = value === "" && shown !== undefined ? `; when absent: ${shown}` : "";
  return [`# ${text}${without}`, example === undefined ? `#${name}=${value}` : `${name}=${example}`];
}

if (import.meta.main) {
  const root = new URL("../", import.meta.url);
  const readme = new URL("README.md", root);
  writeFileSync(readme, toReadme(readFileSync(readme, "utf8")));
  writeFileSync(new URL(".env.example", root), toEnvExample());
}
